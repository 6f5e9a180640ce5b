"""Settings that a study could try: random ones, those that differ from what was tried, and how far apart two are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna import Study

from peftsweep.records.space import Dimension, Space, values
from peftsweep.sweeps.protocol.expectation import Observation

CHOICE_DISTANCE = 0.2  # how far apart the ends of a list of choices count, where those of an interval count 1
# Two rates nearer than this share of their range (15% apart where it spans three decades) are one setting: to run
# the second teaches nothing.
NEAR_SHARE = 0.02
RANDOM_DRAWS = 100
ENUMERABLE = 10_000  # settings of a finite space that are listed to find one that was not tried


def untried(space: Space, history: Sequence[Observation], seed: int) -> dict[str, Any] | None:
    """Some settings away from those tried; failing that, any that were not tried; None where all were."""
    keys = [dimension.key for dimension in space]
    tried = [[trial.params[key] for key in keys] for trial in history]
    drawn = draws(space, seed, RANDOM_DRAWS)
    apart = (found for found in drawn if not is_near_any(space, found, history))
    listed = itertools.chain(drawn, _all_settings(space))
    return next(apart, None) or next((found for found in listed if [found[key] for key in keys] not in tried), None)


def _all_settings(space: Space) -> Iterator[dict[str, Any]]:
    """Every setting of a space of choices alone; nothing where it has intervals or is too large to list."""
    choices = [dimension.choices for dimension in space]
    if all(choices) and math.prod(map(len, choices)) <= ENUMERABLE:
        yield from (dict(zip((d.key for d in space), found, strict=True)) for found in itertools.product(*choices))


def draws(space: Space, seed: int, count: int) -> list[dict[str, Any]]:
    view = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [ask(view, space) for _ in range(count)]


def ask(view: Study, space: Space) -> dict[str, Any]:
    distributions = {dimension.key: dimension.coordinate_distribution() for dimension in space}
    return values(space, view.ask(distributions).params)


def is_near_any(space: Space, found: Mapping[str, Any], history: Sequence[Observation]) -> bool:
    def is_near(dimension: Dimension, one: Any, other: Any) -> bool:
        if dimension.choices:
            return bool(one == other)
        return abs(dimension.share_of(one) - dimension.share_of(other)) <= NEAR_SHARE

    return any(all(is_near(d, found[d.key], trial.params[d.key]) for d in space) for trial in history)


def distance(space: Space, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    def along(dimension: Dimension) -> float:
        first, second = one[dimension.key], other[dimension.key]
        if dimension.choices and not dimension.is_ordered:
            return CHOICE_DISTANCE * (first != second)
        apart = abs(dimension.share_of(first) - dimension.share_of(second))
        return CHOICE_DISTANCE * apart if dimension.choices else apart

    return math.hypot(*(along(dimension) for dimension in space))
