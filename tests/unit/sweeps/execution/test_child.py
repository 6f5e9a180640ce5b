"""How a trial's end is told, and what the worker makes of it; no job is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from peftsweep.errors import (
    DeviceBusyError,
    Interrupted,
    MethodError,
    NonFiniteLossError,
    OutOfMemoryError,
    OutputError,
    Problem,
    Pruned,
)
from peftsweep.records.results import JobResult, Status, save_result
from peftsweep.records.space import LR
from peftsweep.sweeps.execution import child
from peftsweep.sweeps.execution.child import BudgetSpent, outcome_left_behind, serve
from peftsweep.sweeps.execution.messages import Request
from peftsweep.sweeps.execution.storage import open_storage
from peftsweep.sweeps.execution.tickets import RESULTS, Ending, Outcome, Terms, Tickets, seen
from peftsweep.sweeps.execution.worker import conclude, stable_seed
from tests.unit.sweeps.conftest import make_spec

ENDINGS = [
    (Pruned("worse"), Ending.PRUNED),
    (BudgetSpent("spent"), Ending.SPENT),
    (OutOfMemoryError("full"), Ending.OOM),
    (MemoryError(), Ending.CRASHED),
    (NonFiniteLossError("nan"), Ending.DIVERGED),
    (MethodError(Problem("a block must divide the layer")), Ending.REFUSED),
    (Interrupted("SIGTERM"), Ending.INTERRUPTED),
    (KeyboardInterrupt(), Ending.INTERRUPTED),
    (OutputError("the disk is full"), Ending.CRASHED),
    (DeviceBusyError("others hold it"), Ending.CRASHED),
    (RuntimeError("no idea"), Ending.CRASHED),
]


def served(folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> Outcome:
    def run(*given: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(child, "_run", run)
    return serve(Request((), str(folder), "valid/loss"), connection=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("error", "ending"), ENDINGS, ids=lambda value: type(value).__name__)
def test_each_way_to_end_is_told_apart(
    error: BaseException, ending: Ending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served(tmp_path, monkeypatch, error).ending is ending


def test_an_outcome_that_nobody_heard_is_found_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = served(tmp_path, monkeypatch, NonFiniteLossError("nan"))
    assert outcome_left_behind(tmp_path) == told


def test_a_job_that_finished_before_its_worker_died_counts(tmp_path: Path) -> None:
    result = JobResult(Status.OK, "lora", "pocket-llama", "metamath", 0, metrics={"valid/loss": 0.5, "train/tokens": 7})
    save_result(result, tmp_path)
    left = outcome_left_behind(tmp_path)
    assert left is not None
    assert (left.ending, left.metrics["valid/loss"], left.tokens) == (Ending.FINISHED, 0.5, 7)


@pytest.mark.parametrize("content", [None, "{", '{"schema_version": 1}'])
def test_a_folder_without_a_whole_result_tells_nothing(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    assert outcome_left_behind(tmp_path) is None


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
    conclude(spec, tickets, trial, Outcome(Ending.OOM, "full"))
    ended = tickets.trial(0)
    assert ended.is_result
    assert (ended.state, ended.constraints["memory"]) == (TrialState.FAIL, 1.0)
    assert [(one.state, one.violations["memory"]) for one in seen([ended])] == [("oom", 1.0)]


def test_a_job_that_ends_well_without_a_finite_objective_has_diverged(tickets: Tickets, tmp_path: Path) -> None:
    trial = tickets.claim("worker", 0.0)
    assert trial is not None
    conclude(make_spec(tmp_path), tickets, trial, Outcome(Ending.FINISHED, metrics={"valid/loss": float("nan")}))
    assert tickets.trial(0).outcome.ending is Ending.DIVERGED  # type: ignore[union-attr]


def test_only_what_says_something_about_the_settings_is_a_result() -> None:
    assert {Ending.FINISHED, Ending.PRUNED, Ending.SPENT, Ending.OOM, Ending.DIVERGED} == RESULTS


def test_a_proposals_seed_depends_on_sweep_study_and_trial_alone() -> None:
    assert stable_seed(0, "monday/lora", 3) == stable_seed(0, "monday/lora", 3) == 2538524498
    others = [stable_seed(1, "monday/lora", 3), stable_seed(0, "monday/oft", 3), stable_seed(0, "monday/lora", 4)]
    assert len({*others, stable_seed(0, "monday/lora", 3)}) == 4
