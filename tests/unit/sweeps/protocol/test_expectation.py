import math

import pytest

from peftsweep.records.space import CAPACITY, LR
from peftsweep.sweeps.protocol.expectation import Observation, losses_of


def trial(lr, state="ok", value=None, **kwargs):
    return Observation({LR: lr, CAPACITY: 8}, state, value, **kwargs)


def test_losses_are_logarithms_so_that_bad_ones_do_not_hide_good_ones():
    assert losses_of([trial(1e-3, value=0.3), trial(1e-2, value=5.0)], "minimize") == [math.log(0.3), math.log(5.0)]


def test_values_that_may_be_negative_stay_as_they_are():
    assert losses_of([trial(1e-3, value=-0.3), trial(1e-2, value=5.0)], "minimize") == [-0.3, 5.0]
    assert losses_of([trial(1e-3, value=0.7), trial(1e-2, value=0.2)], "maximize") == [-0.7, -0.2]


def test_a_pruned_trial_is_expected_to_go_on_as_those_that_completed():
    done = [trial(1e-3, value=1.0, reports={10: 2.0}), trial(1e-2, value=4.0, reports={10: 8.0})]
    pruned = trial(1e-1, state="pruned", reports={5: 9.0, 10: 4.0})
    assert losses_of([*done, pruned], "minimize")[-1] == pytest.approx(math.log(2.0))


def test_a_probe_better_than_all_that_completed_is_expected_to_end_better():
    done = trial(1e-3, value=1.0, reports={10: 2.0})
    probes = [trial(1e-2, state="pruned", reports={10: report}) for report in (0.5, 1.0)]
    best, second, worst = losses_of([*probes, done], "minimize")
    assert best < second < worst


@pytest.mark.parametrize("state", ["diverged", "oom"])
def test_a_failure_of_the_settings_is_worth_the_worst_value(state):
    assert losses_of([trial(1e-3, value=1.0), trial(1e-2, value=2.0), trial(1e-1, state=state)], "minimize")[
        2
    ] == math.log(2)


def test_a_failure_beside_a_single_success_looks_worse():
    success, failure = losses_of([trial(1e-3, value=1.0), trial(1e-1, state="diverged")], "minimize")
    assert failure > success


@pytest.mark.parametrize("state", ["running", "failed"])
def test_a_trial_that_says_nothing_has_no_loss(state):
    assert losses_of([trial(1e-3, state=state)], "minimize") == [None]
