"""Tickets in real storages: claimed once, put back whole, finished with all that is known."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from peftsweep.records.limits import parse_limits
from peftsweep.records.results import Status
from peftsweep.records.space import CAPACITY, LR, Dimension
from peftsweep.sweeps.execution.storage import open_storage
from peftsweep.sweeps.execution.tickets import Tickets
from peftsweep.sweeps.protocol.trials import (
    Ending,
    Outcome,
    Terms,
    Trial,
    best_of,
    current,
    observations,
    stopped_because,
)

MakeTrial = Callable[..., Trial]
NewTickets = Callable[..., Tickets]
SPACE = (Dimension(LR, 1e-5, 1e-2, log=True), Dimension(CAPACITY, choices=(4, 8, 16)))
PARAMS = {LR: 0.00123, CAPACITY: 8}


@pytest.fixture(params=["journal", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "journal" else f"sqlite:///{tmp_path / 'studies.db'}"


@pytest.fixture
def tickets(url: str | None, tmp_path: Path, new_tickets: NewTickets) -> Tickets:
    return new_tickets(open_storage(tmp_path, url))


def claimed(tickets: Tickets, terms: Terms | None = None) -> Trial:
    tickets.add(terms or Terms())
    trial = tickets.claim("here-1-0", 5.0)
    assert trial is not None
    return trial


def test_a_claimed_ticket_says_whose_it_is(tickets: Tickets) -> None:
    trial = claimed(tickets, Terms(params=PARAMS, seed=3, tokens=100))
    assert (trial.worker, trial.claimed_at_seconds, trial.state) == ("here-1-0", 5.0, TrialState.RUNNING)
    assert trial.terms == Terms(params=PARAMS, seed=3, tokens=100)


def test_nothing_is_claimed_where_nothing_waits(tickets: Tickets) -> None:
    assert tickets.claim("here-1-0", 0.0) is None
    claimed(tickets)
    assert tickets.claim("here-2-0", 0.0) is None


def test_many_workers_at_once_claim_each_ticket_once(
    url: str | None, tmp_path: Path, tickets: Tickets, new_tickets: NewTickets
) -> None:
    new_tickets(tickets.storage, count=10)
    start = threading.Barrier(4)

    def work(index: int) -> Iterator[int]:
        mine = Tickets(open_storage(tmp_path, url), tickets.name)
        start.wait()
        while (trial := mine.claim(f"here-{index}-0", 0.0)) is not None:
            yield trial.number

    with ThreadPoolExecutor(4) as pool:
        won = [number for numbers in pool.map(lambda index: list(work(index)), range(4)) for number in numbers]
    assert sorted(won) == list(range(10))


def test_a_ticket_put_back_is_not_won_by_who_had_it_when_another_is_faster(
    tmp_path: Path, new_tickets: NewTickets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna's journal keeps in mind which trial a worker won last."""
    slow, fast = (new_tickets(open_storage(tmp_path, None)) for _ in range(2))
    slow.requeue(claimed(slow), "crashed", costs_attempt=True)
    write: Callable[..., None] = slow.storage._write_log  # type: ignore[attr-defined]
    won: list[Trial | None] = []

    def write_after_the_other(*log: Any) -> None:
        monkeypatch.setattr(slow.storage, "_write_log", write)
        won.append(fast.claim("fast", 0.0))
        write(*log)

    monkeypatch.setattr(slow.storage, "_write_log", write_after_the_other)
    assert slow.claim("slow", 0.0) is None
    assert [trial and trial.worker for trial in won] == ["fast"]


def test_a_ticket_put_back_keeps_number_and_settings(tickets: Tickets) -> None:
    trial = claimed(tickets)
    tickets.set_params(trial, SPACE, PARAMS)
    tickets.requeue(tickets.trial(0), "killed", costs_attempt=True)
    again = tickets.claim("here-2-0", 9.0)
    assert again is not None
    assert (again.number, again.params, again.worker, again.attempts) == (0, PARAMS, "here-2-0", 1)
    assert len(tickets.trials()) == 1


def test_an_interruption_costs_no_attempt(tickets: Tickets) -> None:
    tickets.requeue(claimed(tickets), "interrupted", costs_attempt=False)
    assert tickets.trial(0).attempts == 0


def test_a_ticket_put_back_is_nobodys(tickets: Tickets) -> None:
    """Or whoever claims it next would look, for a moment, like the dead worker who had it."""
    trial = claimed(tickets)
    tickets.note(trial, folder="/tmp/0000")
    tickets.requeue(tickets.trial(0), "killed", costs_attempt=True)
    assert (tickets.trial(0).worker, tickets.trial(0).folder) == (None, None)


def test_notes_add_to_the_claim(tickets: Tickets) -> None:
    trial = claimed(tickets)
    tickets.note(trial, folder="/tmp/0000")
    tickets.note(trial, mlflow_run_id="abc")
    assert (tickets.trial(0).worker, tickets.trial(0).folder) == ("here-1-0", "/tmp/0000")


def test_settings_proposed_anew_replace_those_of_a_worker_that_died(tickets: Tickets) -> None:
    trial = claimed(tickets)
    tickets.set_params(trial, SPACE[:1], {LR: 0.001})
    tickets.set_params(trial, SPACE, PARAMS)
    assert tickets.trial(0).params == PARAMS


@pytest.mark.parametrize(
    ("ending", "state", "value", "status"),
    [
        (Ending.FINISHED, TrialState.COMPLETE, 0.5, Status.OK),
        (Ending.PRUNED, TrialState.PRUNED, None, Status.PRUNED),
        (Ending.SPENT, TrialState.PRUNED, None, Status.PRUNED),
        (Ending.OOM, TrialState.FAIL, None, Status.OOM),
        (Ending.DIVERGED, TrialState.FAIL, None, Status.FAILED),
        (Ending.REFUSED, TrialState.FAIL, None, Status.FAILED),
        (Ending.CRASHED, TrialState.FAIL, None, Status.FAILED),
    ],
)
def test_an_ending_sets_state_value_and_outcome(
    ending: Ending,
    state: TrialState,
    value: float | None,
    status: Status,
    storage: BaseStorage,
    new_tickets: NewTickets,
) -> None:
    tickets = new_tickets(storage)
    outcome = Outcome(
        ending, "cause", "/tmp/0", "run", {"valid/loss": 0.5}, {"test/accuracy": (0.1, 0.2)}, seconds=1.5, tokens=10
    )
    tickets.finish(claimed(tickets), outcome, 0.5, {"memory": -0.25})
    trial = tickets.trial(0)
    assert (trial.state, trial.value, trial.constraints) == (state, value, {"memory": -0.25})
    assert trial.outcome is not None
    assert (trial.outcome.ending, trial.outcome.status, trial.outcome.tokens) == (ending, status, 10)
    assert tuple(trial.outcome.intervals["test/accuracy"]) == (0.1, 0.2)
    assert trial.ended_at_seconds is not None


def test_a_finished_ticket_is_never_claimed(tickets: Tickets) -> None:
    tickets.finish(claimed(tickets), Outcome(Ending.FINISHED), 0.5, {})
    assert tickets.claim("here-2-0", 0.0) is None


def test_the_outcome_of_a_worker_that_died_while_finishing_does_not_count(tickets: Tickets) -> None:
    trial = claimed(tickets)
    tickets._set(trial.id, "outcome", {"ending": "oom"})
    assert tickets.trial(0).outcome is None


def test_another_object_sees_what_this_one_wrote(url: str | None, tmp_path: Path, tickets: Tickets) -> None:
    other = Tickets(open_storage(tmp_path, url), tickets.name)
    assert other.trials() == []
    trial = claimed(tickets)
    assert [t.state for t in other.trials()] == [TrialState.RUNNING]
    tickets.finish(trial, Outcome(Ending.FINISHED), 0.5, {})
    assert [(t.state, t.value) for t in other.trials()] == [(TrialState.COMPLETE, 0.5)]


def test_reports_are_kept_by_step(tickets: Tickets) -> None:
    trial = claimed(tickets)
    for step, value in ((10, 0.9), (20, 0.8), (10, 0.7)):
        tickets.report(trial, step, value)
    assert tickets.trial(0).reports == {10: 0.7, 20: 0.8}


def test_a_retry_stands_for_the_trial_that_it_replaces(trial: MakeTrial) -> None:
    trials = [trial(0), trial(1, Ending.CRASHED), trial(2), trial(3, Ending.CRASHED, terms=Terms(retry_of=1))]
    trials.append(trial(4, None, terms=Terms(retry_of=3)))
    assert [t.number for t in current(trials)] == [0, 2, 4]


@pytest.mark.parametrize("ending", [Ending.REFUSED, Ending.CRASHED])
def test_three_failures_in_a_row_stop_a_study(ending: Ending, trial: MakeTrial) -> None:
    trials = [trial(0), *(trial(number, ending) for number in (1, 2, 3))]
    assert "the cause" in (stopped_because(trials) or "")
    assert stopped_because(trials[:-1]) is None


@pytest.mark.parametrize("ending", [Ending.FINISHED, Ending.PRUNED, Ending.SPENT, Ending.OOM, Ending.DIVERGED])
def test_a_result_is_no_failure(ending: Ending, trial: MakeTrial) -> None:
    assert stopped_because([trial(number, ending) for number in range(4)]) is None
    failures = [trial(number, Ending.CRASHED) for number in range(4)]
    assert stopped_because([*failures[:2], trial(2, ending), failures[3]]) is None


def test_retried_failures_let_a_study_go_on(trial: MakeTrial) -> None:
    failed = [trial(number, Ending.REFUSED) for number in range(3)]
    retries = [trial(3 + number, None, terms=Terms(retry_of=number)) for number in range(3)]
    assert stopped_because([*failed, *retries]) is None


@pytest.mark.parametrize(("objective", "best"), [("valid/loss", 0), ("valid/dino_similarity", 1)])
def test_the_best_is_what_the_objectives_direction_says(objective: str, best: int, trial: MakeTrial) -> None:
    found = best_of([trial(0, value=0.1), trial(1, value=0.3), trial(2, value=0.2)], objective)
    assert found is not None
    assert found.number == best


def test_the_best_keeps_to_every_limit(trial: MakeTrial) -> None:
    def measured(number: int, loss: float, memory: float) -> Trial:
        metrics = {"valid/loss": loss, "memory/job_peak_rss_bytes": memory}
        return trial(number, value=loss, outcome=Outcome(Ending.FINISHED, metrics=metrics))

    trials = [measured(0, 0.1, 11.0), trial(1, value=0.2), measured(2, 0.15, 10.0), measured(3, 0.12, float("nan"))]
    found = best_of(trials, "valid/loss", parse_limits(["memory<=10B"]))
    assert found is not None
    assert found.number == 2


def test_only_a_whole_trial_can_be_best(trial: MakeTrial) -> None:
    endings = [Ending.PRUNED, Ending.OOM, Ending.CRASHED, None]
    assert best_of([trial(i, ending, reports={10: 0.01}) for i, ending in enumerate(endings)], "valid/loss") is None


def test_a_replaced_trial_is_not_best(trial: MakeTrial) -> None:
    found = best_of([trial(0, value=0.1), trial(1, value=0.2, terms=Terms(retry_of=0))], "valid/loss")
    assert found is not None
    assert found.number == 1


def test_a_sampler_sees_what_was_tried_and_what_runs(trial: MakeTrial) -> None:
    endings = [Ending.FINISHED, Ending.PRUNED, Ending.SPENT, Ending.OOM, Ending.DIVERGED, Ending.CRASHED, None]
    states = ["ok", "pruned", "pruned", "oom", "diverged", "failed", "running"]
    assert [found.state for found in observations([trial(i, ending) for i, ending in enumerate(endings)])] == states


def test_a_sampler_does_not_see_what_has_no_settings_or_waits(trial: MakeTrial) -> None:
    assert observations([trial(0, None, params={}), trial(1, None, state=TrialState.WAITING)]) == []
