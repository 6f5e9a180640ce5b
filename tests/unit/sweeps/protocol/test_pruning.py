import optuna
import pytest
from optuna.trial import TrialState

from peftsweep.errors import ConfigError
from peftsweep.sweeps.protocol.pruning import BOOTSTRAP_COUNT, build_pruner, report_steps, should_prune


class Reports:
    """A study whose trials report once, at the first rung of successive halving."""

    def __init__(self, direction="minimize", pruner="successive_halving", **kwargs):
        self.study = optuna.create_study(direction=direction)
        self.pruner, self.kwargs = pruner, kwargs
        self.step = report_steps(45, pruner, kwargs)[0]

    def is_pruned(self, value, step=None):
        trial = self.study.ask()
        trial.report(value, step or self.step)
        pruned = should_prune(
            self.study, self.study.trials[trial.number], pruner=self.pruner, kwargs=self.kwargs, max_steps=45
        )
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        self.study.tell(trial, None if pruned else value, state=state)
        return pruned


def test_by_default_a_trial_reports_once_past_the_warm_up():
    assert report_steps(45, "successive_halving") == (10,)
    assert report_steps(150, "successive_halving") == (33,)


def test_without_probes_halving_decides_at_every_rung_before_the_last_step():
    kwargs = {"min_resource": 5, "reduction_factor": 3, "bootstrap_count": 0}
    assert report_steps(45, "successive_halving", kwargs) == (5, 15)


def test_the_median_pruner_gets_a_report_each_eighth():
    assert report_steps(80, "median") == (10, 20, 30, 40, 50, 60, 70)


def test_without_a_pruner_nothing_is_measured_before_the_end():
    assert report_steps(80, "none") == ()


@pytest.mark.parametrize("pruner", ["successive_halving", "median", "none"])
@pytest.mark.parametrize("max_steps", [1, 2, 3, 9])
def test_short_trials_report_only_before_their_last_step(pruner, max_steps):
    assert all(0 < step < max_steps for step in report_steps(max_steps, pruner))


def test_the_first_trial_is_never_pruned():
    assert not Reports(bootstrap_count=6).is_pruned(9.0)


def test_probes_stop_at_the_rung_however_good_they_are():
    reports = Reports()
    reports.is_pruned(9.0)
    assert all(reports.is_pruned(value) for value in (5.0, 4.0, 3.0, 2.0, 1.0)[: BOOTSTRAP_COUNT - 1])


@pytest.mark.parametrize(("value", "is_pruned"), [(1.5, False), (2.5, True)])
def test_after_the_probes_the_best_third_goes_on(value, is_pruned):
    reports = Reports(bootstrap_count=6)
    for known in (9.0, 1.0, 2.0, 3.0, 4.0, 5.0):
        reports.is_pruned(known)
    assert reports.is_pruned(value) is is_pruned


def test_the_first_trial_counts_among_those_that_reached_the_rung():
    reports = Reports(bootstrap_count=1)
    reports.is_pruned(1.0)
    assert not reports.is_pruned(0.5)


def test_where_higher_is_better_the_highest_go_on():
    reports = Reports("maximize", bootstrap_count=1)
    reports.is_pruned(0.5)
    assert reports.is_pruned(0.4)
    assert not reports.is_pruned(0.6)


def test_the_median_pruner_stops_the_worse_half():
    reports = Reports(pruner="median", n_startup_trials=1, n_warmup_steps=0)
    reports.is_pruned(1.0)
    assert reports.is_pruned(2.0)
    assert not reports.is_pruned(0.5)


def test_without_a_pruner_nobody_stops():
    study = optuna.create_study()
    for value in (1.0, 9.0):
        trial = study.ask()
        trial.report(value, 1)
        assert not should_prune(study, study.trials[trial.number], pruner="none", kwargs={}, max_steps=9)


@pytest.mark.parametrize(
    ("name", "kwargs", "named"),
    [
        ("halving", {}, "successive_halving, median, none"),
        ("successive_halving", {"factor": 3}, "reduction_factor"),
        ("successive_halving", {"reduction_factor": 1}, "reduction_factor >= 2"),
        ("successive_halving", {"bootstrap_count": 0, "min_resource": "auto"}, "number of steps"),
        ("none", {"patience": 3}, "It takes none"),
    ],
)
def test_what_a_pruner_does_not_take_is_refused_with_the_way_out(name, kwargs, named):
    with pytest.raises(ConfigError, match=named):
        report_steps(45, name, kwargs)


def test_arguments_reach_the_class_of_optuna():
    assert build_pruner("median", {"n_min_trials": 7}, 45)._n_min_trials == 7
