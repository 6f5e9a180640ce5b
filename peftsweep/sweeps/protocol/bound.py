"""Where the model looks: between rates that did badly on either side of the best.

A model of a few points would try the ends again for every capacity. But where the best rate depends on the capacity, or
there are two valleys, the best may lie outside: so only early proposals are bound, and later every second one.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from peftsweep.records.space import Dimension, Space
from peftsweep.sweeps.protocol.expectation import Observation, losses_of

# A poor rate bounds the search only at this share of the range from the best: nearer, its capacity may be the cause.
BOUND_SHARE = 0.1
BOUND_TRIALS = 4  # fewer don't tell what is poor
BOUND_UNTIL = 10  # trials; from then on every second proposal is free


def bounded(space: Space, history: Sequence[Observation], direction: str) -> Space:
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
