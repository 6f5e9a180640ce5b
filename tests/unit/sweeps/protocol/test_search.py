import logging
import math
import warnings

import optuna
import pytest

from peftsweep.errors import ConfigError
from peftsweep.records.space import CAPACITY, LR, Dimension
from peftsweep.sweeps.protocol.expectation import Observation
from peftsweep.sweeps.protocol.search import propose

RATES = Dimension(LR, low=1e-4, high=1e-1, log=True)
RANKS = Dimension(CAPACITY, choices=(4, 8, 16, 32))
NAMES = Dimension("hparams.scheduler", choices=("cosine", "linear"))
SPACE = (RATES, RANKS)
SAMPLERS = ("gp", "tpe", "random")


def next_of(seen, space=SPACE, sampler="gp", seed=0, direction="minimize", **kwargs):
    return propose(space, seen, sampler=sampler, kwargs=kwargs, seed=seed, direction=direction)


def trial(lr, rank=8, state="ok", value=None, **kwargs):
    return Observation({LR: lr, CAPACITY: rank}, state, value, **kwargs)


def bowl(lr, rank=8, best=5e-3):
    """A completed trial of an objective whose minimum is at one rate, whatever the rank."""
    return trial(lr, rank, value=0.3 + (math.log10(lr) - math.log10(best)) ** 2)


def decades_from(lr, other):
    return abs(math.log10(lr / other))


COMPLETED = [bowl(1e-3, 32), bowl(3e-4, 8), bowl(2e-2, 16), bowl(9e-2, 4), bowl(2e-3, 8)]
EVERY_STATE = [
    *COMPLETED,
    trial(1e-2, state="pruned", reports={5: 1.2, 10: 0.8}),
    trial(8e-2, 32, "oom", violations={"memory": 3e9}),
    trial(5e-2, state="diverged", reports={5: math.inf}),
    trial(4e-3, 16, "running"),
    trial(6e-3, 16, "failed"),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "seen", [[], COMPLETED[:1], COMPLETED, EVERY_STATE], ids=["none", "one", "some", "every state"]
)
def test_what_is_proposed_lies_in_the_space_and_names_every_dimension(sampler, seen):
    found = next_of(seen, (*SPACE,), sampler)
    assert list(found) == [LR, CAPACITY]
    assert RATES.holds(found[LR])
    assert RANKS.holds(found[CAPACITY])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_arguments_give_the_same_settings(sampler):
    assert next_of(EVERY_STATE, sampler=sampler) == next_of(EVERY_STATE, sampler=sampler)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_another_seed_starts_elsewhere(sampler):
    assert next_of([], sampler=sampler, seed=1) != next_of([], sampler=sampler, seed=2)


def test_a_gaussian_process_goes_to_the_best_of_a_bowl():
    near = [bowl(lr, rank) for lr in (1e-3, 3e-3, 9e-3, 3e-2) for rank in (4, 32)]
    assert decades_from(next_of(near)[LR], 5e-3) < 0.3


def test_where_higher_is_better_it_goes_to_the_highest():
    near = [bowl(lr, rank) for lr in (1e-3, 3e-3, 9e-3, 3e-2) for rank in (4, 32)]
    upside_down = [Observation(seen.params, "ok", 2 - seen.value) for seen in near]
    assert decades_from(next_of(upside_down, direction="maximize")[LR], 5e-3) < 0.3


def test_two_workers_are_sent_to_different_places():
    first = next_of(COMPLETED)
    assert next_of([*COMPLETED, Observation(first, "running")]) != first


BELOW_AND_ABOVE = [bowl(lr, rank) for lr, rank in ((2e-4, 32), (7e-4, 32), (4e-3, 32), (6e-3, 32), (6e-2, 32))]


def is_between(found):
    return 7e-4 <= found[LR] <= 6e-2


def test_the_model_searches_between_rates_that_did_badly():
    seen = [*BELOW_AND_ABOVE, bowl(5e-3, 8)]
    assert all(is_between(next_of(seen, sampler="tpe", seed=seed)) for seed in range(30))


def test_from_the_tenth_trial_every_second_proposal_is_free():
    seen = [*BELOW_AND_ABOVE, *(bowl(lr, 8) for lr in (5e-3, 5.5e-3, 4.5e-3, 7e-3, 3.5e-3))]
    assert not all(is_between(next_of(seen, sampler="tpe", seed=seed)) for seed in range(60))
    assert all(is_between(next_of([*seen, bowl(8e-3, 8)], sampler="tpe", seed=seed)) for seed in range(60))


def test_a_failed_trial_does_not_count_as_one_of_the_first():
    failed = [trial(lr, state="failed") for lr in (1e-3, 2e-3, 4e-3, 8e-3, 2e-2)]
    assert next_of(failed, n_startup_trials=1) != next_of(failed, n_startup_trials=0)


def test_settings_that_were_tried_are_not_proposed_again():
    space = (RANKS, NAMES)
    seen = []
    for number in range(8):
        found = next_of(seen, space, seed=number)
        assert found not in [trial.params for trial in seen]
        seen.append(Observation(found, "failed" if number == 3 else "ok", 1.0))


def test_an_exhausted_space_may_repeat():
    space = (RANKS,)
    seen = [Observation({CAPACITY: rank}, "ok", 1.0) for rank in RANKS.choices]
    assert next_of(seen, space)[CAPACITY] in RANKS.choices


def test_a_rate_almost_like_one_tried_is_not_worth_a_trial():
    seen = [Observation({LR: 3e-3}, "ok", 1.0)]
    proposed = [next_of(seen, (RATES,), "random", seed)[LR] for seed in range(100)]
    assert min(decades_from(lr, 3e-3) for lr in proposed) > 0.05


def test_trials_outside_the_space_are_left_out():
    outside = [Observation({LR: 5.0, CAPACITY: 8}, "ok", 0.0), Observation({LR: 1e-3}, "ok", 0.0)]
    assert next_of([*COMPLETED, *outside]) == next_of(COMPLETED)


def test_out_of_memory_keeps_the_sampler_away_without_hiding_the_rest():
    large = [trial(lr, 32, "oom") for lr in (1e-3, 5e-3, 3e-2)]
    small = [trial(lr, rank, value=1.0 - rank / 100) for lr, rank in ((1e-3, 4), (3e-3, 8), (1e-2, 4), (3e-2, 8))]
    proposed = [next_of([*large, *small], seed=seed)[CAPACITY] for seed in range(5)]
    assert proposed.count(32) <= 1


def test_a_violated_limit_keeps_the_sampler_away():
    seen = [
        trial(lr, rank, value=1.0 - rank / 100, violations={"memory": (rank - 20) * 1e9})
        for lr, rank in ((1e-3, 4), (3e-3, 32), (1e-2, 8), (3e-2, 32), (3e-3, 16))
    ]
    proposed = [next_of(seen, seed=seed, n_startup_trials=5)[CAPACITY] for seed in range(5)]
    assert proposed.count(32) <= 1


@pytest.mark.parametrize(
    ("sampler", "kwargs", "named"),
    [
        ("gpp", {}, "gp, tpe, random"),
        ("gp", {"n_startup": 4}, "n_startup_trials"),
        ("tpe", {"constraints_func": 4}, "n_startup_trials"),
        ("random", {"n_startup_trials": 4}, "It takes none"),
    ],
)
def test_what_a_sampler_does_not_take_is_refused_with_the_way_out(sampler, kwargs, named):
    with pytest.raises(ConfigError, match=named):
        next_of([], sampler=sampler, **kwargs)


def test_nothing_is_said_about_the_view(caplog):
    verbosity = optuna.logging.get_verbosity()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("error")
        next_of(EVERY_STATE, deterministic_objective=True)
    assert caplog.text == ""
    assert optuna.logging.get_verbosity() == verbosity
