"""Which settings a study tries next: a pure function of what was tried so far.

Each call builds a small study in memory, the view, in which every trial stands for what it tells a sampler, asks a
fresh sampler for one point and forgets both. So a resumed or restarted worker has no sampler state to lose.

What a trial is worth there is told by expectation.py. Besides, a running one is busy, so that the sampler looks
elsewhere; one that ran out of memory is outside a constraint; and a failed one is not proposed again.

The first trials are spread over the learning rate, with the published choices for the rest: random ones lie together so
often that a study of a dozen trials misses the best region. Later ones keep between rates that did badly on either side
of the best: a model of so few points would try the ends again for every capacity. Measured with
tests/bench/bench_sampler.py.
"""

from __future__ import annotations

import itertools
import logging
import math
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import optuna
from optuna import Study
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial

from peftsweep.records.space import Dimension, Space, coordinates, values
from peftsweep.sweeps.protocol.expectation import Observation, losses_of
from peftsweep.sweeps.protocol.optuna_objects import build_optuna

DEFAULT_SAMPLER = "gp"
SAMPLERS = {"gp": "GPSampler", "tpe": "TPESampler", "random": "RandomSampler"}
# Trials, the published default included, that are spread before a model of the objective is trusted.
STARTUP_TRIALS = {"gp": 5, "tpe": 5, "random": 0}

SPREAD_CANDIDATES = 8  # more would make the start the same for every seed
CHOICE_DISTANCE = 0.2  # how far apart the ends of a list of choices count, where those of an interval count 1
# Two rates nearer than this share of their range (15% apart where it spans three decades) are one setting: to run
# the second teaches nothing.
NEAR_SHARE = 0.02
# A poor rate bounds the search only at this share of the range from the best: nearer, its capacity may be the cause.
BOUND_SHARE = 0.1
BOUND_TRIALS = 4  # fewer don't tell what is poor
REPEATED_ASKS = 4
RANDOM_DRAWS = 100
ENUMERABLE = 10_000  # settings of a finite space that are listed to find one that was not tried


def propose(
    space: Space, history: Sequence[Observation], *, sampler: str, kwargs: Mapping[str, Any], seed: int, direction: str
) -> dict[str, Any]:
    """The next settings as job values; the same for the same arguments.

    direction: minimize or maximize. Settings that were tried are not proposed again while the space has others. Raises
    ConfigError where the sampler or one of its arguments does not exist.
    """
    inside = _inside(space, history)
    startup_trials, model = build_sampler(sampler, kwargs, seed)
    with _quiet():
        if sum(trial.state != "failed" for trial in inside) < startup_trials:
            return _spread(space, inside, seed)
        searched = _bounded(space, inside, direction) if startup_trials else space
        learned_from = [] if sampler == "random" else _inside(searched, inside)
        view = _build_view(searched, learned_from, model, direction)
        for _ in range(REPEATED_ASKS):
            found = _ask(view, searched)
            if not _is_near_any(space, found, inside):
                return found
            # What was asked for stays in the view as running, so that the next answer is another.
        return _untried(space, inside, seed) or found


def build_sampler(name: str, kwargs: Mapping[str, Any], seed: int) -> tuple[int, BaseSampler]:
    """The number of trials that are spread first, and the Optuna sampler that comes after them.

    Raises ConfigError for an unknown name, or an argument that the sampler does not take.
    """
    # The spread is done here, and the view never gives the sampler less than it asks for.
    fixed = {"n_startup_trials": 1, "warn_independent_sampling": False, "seed": seed}
    with _quiet():
        model: BaseSampler = build_optuna("sampler", SAMPLERS, name, kwargs, fixed=fixed)
    return int(kwargs.get("n_startup_trials", STARTUP_TRIALS[name])), model


def _inside(space: Space, history: Sequence[Observation]) -> list[Observation]:
    return [trial for trial in history if len(coordinates(space, trial.params)) == len(space)]


def _build_view(space: Space, history: Sequence[Observation], sampler: BaseSampler, direction: str) -> Study:
    view = optuna.create_study(storage=optuna.storages.InMemoryStorage(), sampler=sampler, direction="minimize")
    for trial, loss, constraints in zip(history, losses_of(history, direction), _constraints_of(history), strict=True):
        if trial.state == "failed":
            continue
        view.add_trial(
            create_trial(
                state=TrialState.RUNNING if loss is None else TrialState.COMPLETE,
                value=loss,
                params=coordinates(space, trial.params),
                distributions={dimension.key: dimension.coordinate_distribution() for dimension in space},
                constraints=None if loss is None else constraints,
            )
        )
    return view


def _constraints_of(history: Sequence[Observation]) -> list[dict[str, float] | None]:
    """The same constraints for each trial, as samplers want them, each in units of its largest amount.

    One that a trial did not measure counts as just kept. Out of memory is one of its own, as no amount is known.
    """
    names = {name for trial in history for name in trial.violations}
    largest = {name: max(abs(trial.violations.get(name, 0.0)) for trial in history) or 1.0 for name in sorted(names)}
    runs_out = any(trial.state == "oom" for trial in history)
    if not runs_out and not names:
        return [None] * len(history)
    return [
        {name: trial.violations.get(name, 0.0) / amount for name, amount in largest.items()}
        | ({"out of memory": 1.0 if trial.state == "oom" else -1.0} if runs_out else {})
        for trial in history
    ]


def _bounded(space: Space, history: Sequence[Observation], direction: str) -> Space:
    """The space between the nearest trials of the worse half below and above the best one, interval by interval."""
    judged = [
        (loss, trial)
        for loss, trial in zip(losses_of(history, direction), history, strict=True)
        if loss is not None and trial.state != "oom"
    ]
    if len(judged) < BOUND_TRIALS:
        return space
    best = min(judged, key=lambda pair: pair[0])[1]
    limit = statistics.median(loss for loss, _ in judged)
    poor = [trial for loss, trial in judged if loss >= limit]
    return tuple(d if d.choices else _between(d, best.params[d.key], [t.params[d.key] for t in poor]) for d in space)


def _between(dimension: Dimension, best: float, poor: Sequence[float]) -> Dimension:
    here = dimension.share_of(best)
    below = [value for value in poor if dimension.share_of(value) <= here - BOUND_SHARE]
    above = [value for value in poor if dimension.share_of(value) >= here + BOUND_SHARE]
    return replace(dimension, low=max(below, default=dimension.low), high=min(above, default=dimension.high))


def _spread(space: Space, history: Sequence[Observation], seed: int) -> dict[str, Any]:
    """Of a few random settings the one that is farthest from those tried and from the ends of the intervals.

    Choices keep their published default where they have one. An end keeps settings half as far away as a trial does.
    """
    published = tuple(replace(d, choices=(d.default,)) if d.choices and d.holds(d.default) else d for d in space)
    draws = _draws(published, seed, SPREAD_CANDIDATES)
    candidates = [found for found in draws if not _is_near_any(space, found, history)]

    def room(found: Mapping[str, Any]) -> float:
        to_trials = (_distance(space, found, trial.params) for trial in history)
        shares = [dimension.share_of(found[dimension.key]) for dimension in space if not dimension.choices]
        return min((*to_trials, *(2 * min(share, 1 - share) for share in shares)), default=math.inf)

    return max(candidates, key=room) if candidates else _untried(space, history, seed) or draws[0]


def _distance(space: Space, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    def along(dimension: Dimension) -> float:
        first, second = one[dimension.key], other[dimension.key]
        if dimension.choices and not dimension.is_ordered:
            return CHOICE_DISTANCE * (first != second)
        apart = abs(dimension.share_of(first) - dimension.share_of(second))
        return CHOICE_DISTANCE * apart if dimension.choices else apart

    return math.hypot(*(along(dimension) for dimension in space))


def _untried(space: Space, history: Sequence[Observation], seed: int) -> dict[str, Any] | None:
    """Some settings away from those tried; failing that, any that were not tried; None where all were."""
    keys = [dimension.key for dimension in space]
    tried = [[trial.params[key] for key in keys] for trial in history]
    draws = _draws(space, seed, RANDOM_DRAWS)
    apart = (found for found in draws if not _is_near_any(space, found, history))
    listed = itertools.chain(draws, _all_settings(space))
    return next(apart, None) or next((found for found in listed if [found[key] for key in keys] not in tried), None)


def _all_settings(space: Space) -> Iterator[dict[str, Any]]:
    """Every setting of a space of choices alone; nothing where it has intervals or is too large to list."""
    choices = [dimension.choices for dimension in space]
    if all(choices) and math.prod(map(len, choices)) <= ENUMERABLE:
        yield from (dict(zip((d.key for d in space), found, strict=True)) for found in itertools.product(*choices))


def _draws(space: Space, seed: int, count: int) -> list[dict[str, Any]]:
    view = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [_ask(view, space) for _ in range(count)]


def _ask(view: Study, space: Space) -> dict[str, Any]:
    distributions = {dimension.key: dimension.coordinate_distribution() for dimension in space}
    return values(space, view.ask(distributions).params)


def _is_near_any(space: Space, found: Mapping[str, Any], history: Sequence[Observation]) -> bool:
    def is_near(dimension: Dimension, one: Any, other: Any) -> bool:
        if dimension.choices:
            return bool(one == other)
        return abs(dimension.share_of(one) - dimension.share_of(other)) <= NEAR_SHARE

    return any(all(is_near(d, found[d.key], trial.params[d.key]) for d in space) for trial in history)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log lines and its warnings of experimental features would be about the view, which no user knows."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
