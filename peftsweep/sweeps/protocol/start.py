"""The first settings of a study, before a model of the objective is trusted: a climb from what works, or a spread.

A climb goes from the published settings, or the best of an earlier sweep, by three quarters of a decade of the learning
rate to where the loss falls, until the best rate lies between two that are worse; then to the lowest point of a
parabola through these three; then it tries another capacity with the best rate, the largest, or the next smaller where
that is the published one. It has bracketed the best rate in three probes, where a spread over three decades has only
begun: right for a short budget. But it sees a single valley, so longer ones are spread, over the capacities too. Random
settings lie together so often that a study of a dozen trials misses the best region.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from peftsweep.records.space import Dimension, Space
from peftsweep.sweeps.protocol.candidates import distance, draws, is_near_any, untried
from peftsweep.sweeps.protocol.expectation import Observation, losses_of

SPREAD_CANDIDATES = 8  # more would make the start the same for every seed
CLIMB_DECADES = 0.75
SAME_DECADES = 0.05
LEAST_DECADES = 0.2  # less of a step, at an end of the range, teaches little
WIDE_DECADES = 0.3  # neighbours as far from the best as this leave room for a better one
MODEL_TRIALS = 3  # that a model needs after a climb that is over soon


def first_settings(
    space: Space, history: Sequence[Observation], direction: str, *, seed: int, centre: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """The next settings of the start; None where a climb is over, and a model may go on from what it found.

    history: trials inside the space; centre: settings to climb from, None: spread.
    """
    if centre is not None:
        found = _climb(space, history, direction, centre)
        judged = sum(loss is not None for loss in losses_of(history, direction))
        if found is not None or judged >= MODEL_TRIALS:
            return found
    return _spread(space, history, seed)


def _climb(
    space: Space, history: Sequence[Observation], direction: str, centre: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The next settings of a climb from `centre`; None where it is over, or there is no rate to climb along.

    history: trials inside the space. What still runs counts as tried, so that parallel workers take the next steps.
    """
    rate = next((dimension for dimension in space if dimension.log and not dimension.choices), None)
    if rate is None or any(dimension.key not in centre for dimension in space):
        return None
    losses = losses_of(history, direction)
    fixed = {key: value for key, value in centre.items() if key != rate.key}
    on_line = [
        (math.log10(trial.params[rate.key]), loss)
        for trial, loss in zip(history, losses, strict=True)
        if trial.state != "failed" and all(trial.params[key] == value for key, value in fixed.items())
    ]
    found = _next_rate(rate, math.log10(centre[rate.key]), on_line)
    if found is None:
        found = _lowest_between(on_line)
    if found is not None:
        return {**centre, rate.key: rate.to_value(10**found)}
    known = [(loss, trial.params) for trial, loss in zip(history, losses, strict=True) if loss is not None]
    best = min(known, key=lambda pair: pair[0])[1] if known else centre
    others = {size.key: _other_size(size) for size in space if size.is_ordered and len(size.choices) > 1}
    is_tried = any(trial.params[key] == value for trial in history for key, value in others.items())
    return {**best, **others} if others and not is_tried else None


def _other_size(size: Dimension) -> Any:
    """The largest capacity; where that is the published one, which the climb keeps to, the next smaller."""
    return size.choices[-1] if size.default != size.choices[-1] else size.choices[-2]


def _next_rate(rate: Dimension, centre: float, tried: Sequence[tuple[float, float | None]]) -> float | None:
    """In decades; None where the best is bracketed. tried: (rate, loss) along the climb."""
    known = [(loss, at) for at, loss in tried if loss is not None]
    best = min(known)[1] if known else centre
    if all(abs(at - best) > SAME_DECADES for at, _ in tried):
        return best
    low, high = (math.log10(end) for end in rate.ends)
    above, below = min(high, best + CLIMB_DECADES), max(low, best - CLIMB_DECADES)
    is_open_above = above - best >= LEAST_DECADES and all(at <= best + SAME_DECADES for at, _ in tried)
    is_open_below = best - below >= LEAST_DECADES and all(at >= best - SAME_DECADES for at, _ in tried)
    # On in the direction of the climb; from the centre upwards, as most published rates were too low in the grid of
    # tests/bench/bench_sampler.py.
    if is_open_above and (best >= centre - SAME_DECADES or not is_open_below):
        return above
    return below if is_open_below else None


def _lowest_between(tried: Sequence[tuple[float, float | None]]) -> float | None:
    """In decades, where a parabola through the best rate and its two neighbours is lowest; None where a neighbour is
    near, or that is the best rate itself. tried: as in _next_rate."""
    known = [(loss, at) for at, loss in tried if loss is not None]
    least, middle = min(known, default=(math.nan, math.nan))
    below = [(middle - at, loss - least) for loss, at in known if at < middle - SAME_DECADES]
    above = [(at - middle, loss - least) for loss, at in known if at > middle + SAME_DECADES]
    if not below or not above:
        return None
    (to_low, falls), (to_high, rises) = min(below), min(above)
    if min(to_low, to_high) < WIDE_DECADES or falls + rises <= 0:
        return None
    falling, rising = falls / to_low, rises / to_high
    found = middle + 0.5 * (falling * to_high - rising * to_low) / (falling + rising)
    return found if abs(found - middle) > SAME_DECADES else None


def _spread(space: Space, history: Sequence[Observation], seed: int) -> dict[str, Any]:
    """Of a few random settings the one that is farthest from those tried and from the ends of the intervals.

    Every second one keeps the published choices, which are good more often than others. An end keeps settings half as
    far away as a trial does.
    """
    published = tuple(replace(d, choices=(d.default,)) if d.choices and d.holds(d.default) else d for d in space)
    drawn = draws(published if len(history) % 2 else space, seed, SPREAD_CANDIDATES)
    candidates = [found for found in drawn if not is_near_any(space, found, history)]

    def room(found: Mapping[str, Any]) -> float:
        to_trials = (distance(space, found, trial.params) for trial in history)
        shares = [dimension.share_of(found[dimension.key]) for dimension in space if not dimension.choices]
        return min((*to_trials, *(2 * min(share, 1 - share) for share in shares)), default=math.inf)

    return max(candidates, key=room) if candidates else untried(space, history, seed) or drawn[0]
