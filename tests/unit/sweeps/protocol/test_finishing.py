"""Only finished trials can win, so the best of the others is finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from peftsweep.records.space import CAPACITY, LR
from peftsweep.sweeps.protocol.finishing import worth_finishing
from peftsweep.sweeps.protocol.trials import Ending, Terms, Trial

MakeTrial = Callable[..., Trial]


def found(trials: list[Trial], direction: str = "minimize") -> int | None:
    best = worth_finishing(trials, direction)
    return best.number if best else None


@pytest.fixture
def default(trial: MakeTrial) -> Trial:
    return trial(0, reports={10: 1.0}, value=0.5)


@pytest.fixture
def probe(trial: MakeTrial) -> MakeTrial:
    """A trial of its own rate that was stopped with a report."""

    def make(number: int, report: float | None, ending: Ending = Ending.PRUNED, **changes: object) -> Trial:
        reports = {} if report is None else {10: report}
        return trial(number, ending, params={LR: number * 1e-4, CAPACITY: 8}, reports=reports, **changes)

    return make


def test_the_probe_that_looks_best_is_finished(default: Trial, probe: MakeTrial) -> None:
    assert found([default, probe(1, 0.9), probe(2, 0.3), probe(3, 0.4)]) == 2


def test_a_probe_that_looks_worse_than_what_is_finished_is_not(default: Trial, probe: MakeTrial) -> None:
    assert found([default, probe(1, 1.1), probe(2, 2.0)]) is None


def test_a_trial_that_its_budget_cut_is_finished_like_a_pruned_one(default: Trial, probe: MakeTrial) -> None:
    assert found([default, probe(1, 0.3, Ending.SPENT), probe(2, None, Ending.SPENT)]) == 1


@pytest.mark.parametrize("ending", [Ending.OOM, Ending.DIVERGED, Ending.CRASHED, None])
def test_what_failed_or_runs_is_not_finished(ending: Ending, default: Trial, probe: MakeTrial) -> None:
    assert found([default, probe(1, 0.3, ending)]) is None


def test_where_higher_is_better_the_highest_is_finished(default: Trial, probe: MakeTrial) -> None:
    assert found([default, probe(1, 0.9), probe(2, 1.3)], "maximize") == 2


def test_a_probe_that_breaks_a_limit_is_not_finished(default: Trial, probe: MakeTrial) -> None:
    assert found([default, probe(1, 0.3, constraints={"memory": 1.0}), probe(2, 0.4, constraints={"memory": 0.0})]) == 2


def test_what_is_finished_but_breaks_a_limit_is_no_yardstick(default: Trial, probe: MakeTrial) -> None:
    assert found([replace(default, constraints={"memory": 1.0}), probe(1, 2.0)]) == 1


@pytest.mark.parametrize("ending", [Ending.OOM, Ending.DIVERGED, Ending.SPENT, Ending.CRASHED])
def test_a_finishing_run_that_fails_is_not_tried_again(ending: Ending, default: Trial, probe: MakeTrial) -> None:
    first = probe(1, 0.3)
    again = replace(probe(3, 0.3, ending), params=first.params, terms=Terms(whole=True, finish_of=1))
    assert found([default, first, probe(2, 0.4), again]) == 2


def test_settings_that_were_finished_later_are_not_finished_again(default: Trial, probe: MakeTrial) -> None:
    first = probe(1, 0.3)
    assert found([default, first, replace(probe(2, 0.3, Ending.FINISHED), params=first.params, value=0.6)]) is None
