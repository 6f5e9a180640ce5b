"""When a stage is over: nothing runs, nothing waits, nothing will come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from peftsweep.config.schema import BudgetConfig, SweepConfig
from peftsweep.records.results import Stage
from peftsweep.records.space import CAPACITY, LR, defaults_of
from peftsweep.sweeps.protocol.specification import SweepSpec
from peftsweep.sweeps.protocol.stage import budget_of, is_over, search_centre, stage_study_name
from peftsweep.sweeps.protocol.trials import Ending, Outcome, Trial

MakeSpec = Callable[..., SweepSpec]
MakeTrial = Callable[..., Trial]


def over(spec: SweepSpec, trials: list[Trial], stage: Stage = Stage.TUNE) -> bool:
    return is_over(spec, spec.studies[0], stage, trials)


def test_tuning_is_over_when_all_trials_have_ended(sweep_spec: MakeSpec, trial: MakeTrial) -> None:
    trials = [trial(number) for number in range(4)]
    assert over(sweep_spec(), trials)
    assert not over(sweep_spec(), trials[:3])
    assert not over(sweep_spec(), [])


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.WAITING])
@pytest.mark.parametrize("stage", [Stage.TUNE, Stage.CONFIRM])
def test_nothing_is_over_while_something_runs_or_waits(
    sweep_spec: MakeSpec, trial: MakeTrial, stage: Stage, state: TrialState
) -> None:
    assert not over(sweep_spec(), [*(trial(number) for number in range(4)), trial(4, None, state=state)], stage)


def test_a_study_that_has_nothing_to_confirm_keeps_nobody_waiting(sweep_spec: MakeSpec) -> None:
    assert over(sweep_spec(), [], Stage.CONFIRM)


def test_a_stopped_study_is_over_though_tickets_wait(sweep_spec: MakeSpec, trial: MakeTrial) -> None:
    failed = [trial(number, Ending.REFUSED) for number in range(3)]
    assert over(sweep_spec(), [*failed, trial(3, None, state=TrialState.WAITING)])
    assert not over(sweep_spec(), [*failed, trial(3, None)])


def test_tuning_by_tokens_is_over_when_too_little_is_left(sweep_spec: MakeSpec, trial: MakeTrial) -> None:
    spec = sweep_spec(settings=SweepConfig(budget=BudgetConfig(tokens=1100)))
    assert over(spec, [trial(0, outcome=Outcome(Ending.FINISHED, tokens=1000))])
    assert not over(spec, [trial(0, outcome=Outcome(Ending.FINISHED, tokens=500))])


def test_the_shortest_useful_trial_reaches_the_first_report(sweep_spec: MakeSpec) -> None:
    spec = sweep_spec()
    study = spec.studies[0]
    assert budget_of(spec, study).first_report == spec.report_steps(study)[0] / study.max_steps


def test_confirm_jobs_are_a_study_beside_the_tuned_one(sweep_spec: MakeSpec) -> None:
    study = sweep_spec().studies[0]
    assert [stage_study_name(study, stage) for stage in (Stage.TUNE, Stage.CONFIRM)] == [
        "monday/lora",
        "monday/lora/confirm",
    ]


@pytest.mark.parametrize(("n_trials", "is_short"), [(4, True), (20, False)])
def test_a_short_study_begins_around_the_published_settings(
    n_trials: int, is_short: bool, sweep_spec: MakeSpec
) -> None:
    spec = sweep_spec(settings=SweepConfig(n_trials=n_trials))
    study = spec.studies[0]
    assert search_centre(spec, study, []) == (defaults_of(study.space) if is_short else None)


def test_a_study_with_a_prior_begins_around_it(sweep_spec: MakeSpec) -> None:
    spec = sweep_spec(settings=SweepConfig(n_trials=20))
    study = replace(spec.studies[0], centre={LR: 3e-3, CAPACITY: 16})
    assert search_centre(spec, study, []) == {LR: 3e-3, CAPACITY: 16}
