"""Short studies climb from what is known to work; longer ones are spread."""

import itertools
import math

import pytest

from peftsweep.records.space import CAPACITY, LR, Dimension
from peftsweep.sweeps.protocol.expectation import Observation
from peftsweep.sweeps.protocol.start import first_settings

RATES = Dimension(LR, low=1e-4, high=1e-1, log=True, default=1e-3)
RANKS = Dimension(CAPACITY, choices=(4, 8, 16, 32), default=8)
SPACE = (RATES, RANKS)
CENTRE = {LR: 1e-3, CAPACITY: 8}


def step_of(seen, space=SPACE, centre=CENTRE, seed=0):
    return first_settings(space, seen, "minimize", seed=seed, centre=centre)


def climbed(best_decades, count, space=SPACE, centre=CENTRE):
    """The settings that are tried where the loss has its minimum so many decades above 1e-3, whatever the rank."""
    seen = []
    for _ in range(count):
        found = step_of(seen, space, centre)
        if found is None:
            break
        distance = math.log10(found[LR]) + 3 - best_decades
        seen.append(Observation(found, "pruned", reports={10: 1 + distance**2 - found.get(CAPACITY, 0) / 100}))
    return [trial.params for trial in seen]


def decades(settings):
    """Above 1e-3."""
    return [round(math.log10(found[LR]) + 3, 2) for found in settings]


@pytest.mark.parametrize(
    ("best", "rates"),
    [(0.0, [0, 0.75, -0.75]), (0.6, [0, 0.75, 1.5]), (-0.5, [0, 0.75, -0.75, -1]), (9.0, [0, 0.75, 1.5, 2])],
)
def test_a_climb_goes_by_three_quarters_of_a_decade_until_the_best_rate_is_bracketed(best, rates):
    assert decades(climbed(best, len(rates))) == rates


@pytest.mark.parametrize("best", [0.6, 0.9, 1.1])
def test_then_the_lowest_point_of_a_parabola_is_tried_and_the_largest_capacity_at_the_best_rate(best):
    *_, lowest, last = tried = climbed(best, 9)
    assert decades(tried[:3]) == [0, 0.75, 1.5]
    assert decades([lowest]) == [pytest.approx(best, abs=0.1)]
    assert last == {LR: lowest[LR], CAPACITY: 32}


@pytest.mark.parametrize("best", [0.0, -0.5, 9.0])
def test_where_a_parabola_tells_nothing_new_the_capacity_comes_next(best):
    *before, last = climbed(best, 9)
    assert last == {LR: min(before, key=lambda found: abs(math.log10(found[LR]) + 3 - best))[LR], CAPACITY: 32}
    assert {found[CAPACITY] for found in before} == {8}


def test_where_the_published_capacity_is_the_largest_the_next_smaller_is_tried():
    ranks = Dimension(CAPACITY, choices=(4, 8, 16, 32), default=32)
    tried = climbed(0.0, 9, (RATES, ranks), {LR: 1e-3, CAPACITY: 32})
    assert [found[CAPACITY] for found in tried] == [32, 32, 32, 16]


def test_two_trials_of_one_rate_are_one_point_of_the_parabola():
    rates = {0.0: [3.0], 0.75: [2.0, 2.1], 1.5: [2.5]}
    seen = [Observation({**CENTRE, LR: 1e-3 * 10**at}, "ok", loss) for at, losses in rates.items() for loss in losses]
    assert 0.75 < decades([step_of(seen)])[0] < 1.5


def test_a_study_of_the_rate_alone_climbs_too():
    assert decades(climbed(0.6, 9, (RATES,), {LR: 1e-3}))[:3] == [0, 0.75, 1.5]


def test_the_best_settings_of_an_earlier_sweep_are_tried_after_the_default():
    earlier = {LR: 2e-2, CAPACITY: 16}
    assert step_of([Observation(CENTRE, "ok", 1.0)], centre=earlier) == earlier


def test_parallel_workers_take_the_next_steps_of_a_climb():
    seen = [Observation(CENTRE, "running")]
    for _ in range(2):
        seen.append(Observation(step_of(seen), "running"))
    assert decades(trial.params for trial in seen) == [0, 0.75, -0.75]


def test_a_failed_job_is_no_step():
    assert step_of([Observation(CENTRE, "failed")]) == CENTRE


def test_a_climb_stays_in_the_range():
    tried = climbed(9.0, 2, centre={LR: 5e-2, CAPACITY: 32})
    assert [found[LR] for found in tried] == [5e-2, 1e-1]


@pytest.mark.parametrize("space", [(RANKS,), (RATES, RANKS, Dimension("hparams.scheduler", choices=("a", "b")))])
def test_without_a_rate_or_a_whole_centre_the_start_is_spread(space):
    assert set(step_of([], space)) == {dimension.key for dimension in space}


def test_a_spread_leaves_no_gap_of_one_and_a_half_decades():
    for seed in range(10):
        seen = [Observation(CENTRE, "running")]
        for number in range(5):
            found = step_of(seen, centre=None, seed=100 * seed + number)
            seen.append(Observation(found, "running"))
        rates = [RATES.low, *sorted(trial.params[LR] for trial in seen), RATES.high]
        assert max(math.log10(right / left) for left, right in itertools.pairwise(rates)) < 1.5


def test_every_second_trial_of_a_spread_keeps_the_published_capacity():
    one, two = [Observation(CENTRE, "running")], [Observation(CENTRE, "running")] * 2
    assert {step_of(one, centre=None, seed=seed)[CAPACITY] for seed in range(20)} == {8}
    assert len({step_of(two, centre=None, seed=seed)[CAPACITY] for seed in range(20)}) > 1
