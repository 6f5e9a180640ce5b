"""What becomes of a trial whose attempt has ended; no job is run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from peftsweep.records.results import JobResult, Status, save_result
from peftsweep.records.space import LR
from peftsweep.sweeps.execution.outcomes import OUTCOME_FILE, recorded_outcome, settle
from peftsweep.sweeps.execution.storage import open_storage
from peftsweep.sweeps.execution.tickets import Tickets
from peftsweep.sweeps.protocol.trials import MOST_ATTEMPTS, RESULTS, Ending, Outcome, Terms, observations
from tests.unit.sweeps.conftest import make_spec


@pytest.mark.parametrize(("status", "ending"), [(Status.OK, Ending.FINISHED), (Status.PRUNED, Ending.PRUNED)])
def test_a_job_that_ended_before_its_worker_died_counts(status: Status, ending: Ending, tmp_path: Path) -> None:
    result = JobResult(status, "lora", "pocket-llama", "metamath", 0, metrics={"valid/loss": 0.5, "train/tokens": 7})
    save_result(result, tmp_path)
    left = recorded_outcome(tmp_path)
    assert left is not None
    assert (left.ending, left.metrics["valid/loss"], left.tokens) == (ending, 0.5, 7)


def test_a_job_whose_score_is_no_number_has_diverged(tmp_path: Path) -> None:
    save_result(JobResult(Status.OK, "lora", "pocket-llama", "metamath", 0, has_diverged=True), tmp_path)
    left = recorded_outcome(tmp_path)
    assert left is not None
    assert (left.ending, left.cause) == (Ending.DIVERGED, "a loss or score was not finite")


@pytest.mark.parametrize("content", [None, "{", '{"schema_version": 1}'])
def test_a_folder_without_a_whole_result_tells_nothing(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    assert recorded_outcome(tmp_path) is None


@pytest.fixture
def tickets(tmp_path: Path) -> Tickets:
    storage = open_storage(tmp_path, None)
    optuna.create_study(storage=storage, study_name="monday/lora", direction="minimize")
    found = Tickets(storage, "monday/lora")
    found.add(Terms(params={LR: 1e-3}))
    return found


def test_a_trial_out_of_memory_is_a_result_that_keeps_others_away(tickets: Tickets, tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    trial = tickets.claim("worker", 0.0)
    assert trial is not None
    tickets.set_params(trial, spec.studies[0].space[:1], {LR: 1e-3})
    settle(spec, tickets, trial, Outcome(Ending.OOM, "full"))
    ended = tickets.trial(0)
    assert ended.is_result
    assert (ended.state, ended.constraints["memory"]) == (TrialState.FAIL, 1.0)
    assert [(one.state, one.violations["memory"]) for one in observations([ended])] == [("oom", 1.0)]


def test_a_job_that_ends_well_without_a_finite_objective_has_diverged(tickets: Tickets, tmp_path: Path) -> None:
    trial = tickets.claim("worker", 0.0)
    assert trial is not None
    settle(make_spec(tmp_path), tickets, trial, Outcome(Ending.FINISHED, metrics={"valid/loss": float("nan")}))
    assert tickets.trial(0).outcome.ending is Ending.DIVERGED  # type: ignore[union-attr]


def test_only_what_says_something_about_the_settings_is_a_result() -> None:
    assert {Ending.FINISHED, Ending.PRUNED, Ending.SPENT, Ending.OOM, Ending.DIVERGED} == RESULTS.keys()


def test_an_interruption_costs_no_attempt(tickets: Tickets, tmp_path: Path) -> None:
    for _ in range(MOST_ATTEMPTS + 1):
        trial = tickets.claim("worker", 0.0)
        assert trial is not None
        settle(make_spec(tmp_path), tickets, trial, Outcome(Ending.INTERRUPTED, "Ctrl-C"))
    assert (tickets.trial(0).state, tickets.trial(0).attempts) == (TrialState.WAITING, 0)


def test_a_crash_is_tried_again_until_its_attempts_are_spent(tickets: Tickets, tmp_path: Path) -> None:
    for attempt in range(1, MOST_ATTEMPTS + 1):
        trial = tickets.claim("worker", 0.0)
        assert trial is not None, f"attempt {attempt} was not offered"
        settle(make_spec(tmp_path), tickets, trial, Outcome(Ending.CRASHED, "signal SIGKILL"))
    assert tickets.trial(0).state is TrialState.FAIL


def test_a_trial_that_was_interrupted_before_its_worker_died_is_run_again(tickets: Tickets, tmp_path: Path) -> None:
    """Its process wrote how it ended, and the worker did not live to read that."""
    interrupted = Outcome(Ending.INTERRUPTED, "SIGTERM", str(tmp_path))
    (tmp_path / OUTCOME_FILE).write_text(json.dumps(asdict(interrupted)))
    trial = tickets.claim("worker", 0.0)
    assert trial is not None
    tickets.note(trial, folder=str(tmp_path))
    settle(make_spec(tmp_path), tickets, tickets.trial(0), Outcome(Ending.CRASHED, "its worker is gone"))
    assert (tickets.trial(0).state, tickets.trial(0).attempts) == (TrialState.WAITING, 0)
