"""Which confirm jobs are due."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from peftsweep.config.schema import ConfirmConfig
from peftsweep.records.space import defaults_of
from peftsweep.sweeps.protocol.specification import StudySpec
from peftsweep.sweeps.protocol.stage import confirm_jobs_due, fresh_seeds
from peftsweep.sweeps.protocol.trials import Ending, Terms, Trial, best_of
from tests.unit.sweeps.conftest import make_spec

MakeTrial = Callable[..., Trial]

CONFIRM = ConfirmConfig(seeds=3, default_seeds=1)


@pytest.fixture
def study(tmp_path: Path) -> StudySpec:
    return make_spec(tmp_path).studies[0]


def due(study: StudySpec, tuned: list[Trial], confirmed: list[Trial]) -> list[Terms]:
    return confirm_jobs_due(study, CONFIRM, best_of(tuned, "valid/loss"), confirmed)


def test_no_confirm_seed_is_the_one_of_tuning(study: StudySpec) -> None:
    assert study.seed not in fresh_seeds(study, 5)
    assert len(set(fresh_seeds(study, 5))) == 5


def test_the_best_settings_get_each_seed_and_the_default_the_first(study: StudySpec, trial: MakeTrial) -> None:
    best = trial(1, Ending.FINISHED, value=0.1)
    found = due(study, [trial(0, Ending.FINISHED, value=0.5), best], [])
    seeds = fresh_seeds(study, 3)
    assert [(terms.role, terms.seed) for terms in found] == [*(("best", seed) for seed in seeds), ("default", seeds[0])]
    assert found[0].params == best.params
    assert found[-1].params == defaults_of(study.space)


def test_a_default_that_is_best_is_confirmed_once(study: StudySpec, trial: MakeTrial) -> None:
    best = trial(0, Ending.FINISHED, value=0.1, params=defaults_of(study.space))
    assert [terms.role for terms in due(study, [best], [])] == ["best"] * 3


def test_a_job_that_was_made_before_is_not_made_again(study: StudySpec, trial: MakeTrial) -> None:
    tuned = [trial(1, Ending.FINISHED, value=0.1)]
    first, *others = due(study, tuned, [])
    assert due(study, tuned, [trial(0, Ending.FINISHED, value=0.2, terms=first)]) == others


def test_nothing_is_confirmed_where_no_trial_finished(study: StudySpec, trial: MakeTrial) -> None:
    assert due(study, [trial(0, Ending.PRUNED)], []) == []
