"""What a study searches: a few dimensions, each a setting of the job with its range. Plain data, kept in sweep.json.

A value is what the job sees (`hparams.lr=0.003`, `method.capacity=32`); a coordinate is what a sampler sees: rates on a
log scale, and an ordered choice by its index, so that the ranks 4, 8, 16, 32 are equally far apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LR = "hparams.lr"
CAPACITY = "method.capacity"
# Nearer to an end than this share of the range (on its scale), the best value may well lie beyond.
EDGE_SHARE = 0.08
# Nearer than this share of each range two settings lie close together: a factor of 2 in a learning rate that is
# searched over three decades.
NEAR_SHARE = 0.1
_PLAIN_WORD = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z][\w-]*", re.IGNORECASE | re.ASCII)
WIDEN_FACTOR = 10.0  # how much further a rate is tried when its best value is at an end


@dataclass(frozen=True)
class Dimension:
    """One searched setting: an interval (`low` to `high`) or a list of `choices`, never both.

    default: the published value, with which the study's first trial starts; None where there is none in the range.
    """

    key: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()
    default: Any = None

    @property
    def is_ordered(self) -> bool:
        """Whether neighbours among the choices are alike: rising numbers, not names."""
        numbers = [c for c in self.choices if isinstance(c, (int, float)) and not isinstance(c, bool)]
        return 0 < len(numbers) == len(self.choices) and numbers == sorted(set(numbers))

    @property
    def ends(self) -> tuple[float, float]:
        """Of an interval."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    def coordinate_distribution(self) -> BaseDistribution:
        """What a sampler searches."""
        from optuna.distributions import IntDistribution

        return IntDistribution(0, len(self.choices) - 1) if self.is_ordered else self.value_distribution()

    def value_distribution(self) -> BaseDistribution:
        """What is stored and drawn: the values themselves. A wider range later stays compatible with it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices and not self.is_ordered:
            return CategoricalDistribution(self.choices)
        low, high = (self.choices[0], self.choices[-1]) if self.choices else self.ends
        is_whole = all(isinstance(choice, int) for choice in self.choices) if self.choices else self.integer
        if is_whole:
            return IntDistribution(int(low), int(high), log=self.log)
        return FloatDistribution(float(low), float(high), log=self.log)

    def to_coordinate(self, value: Any) -> Any:
        return self.choices.index(value) if self.is_ordered else value

    def to_value(self, coordinate: Any) -> Any:
        if self.is_ordered:
            return self.choices[int(coordinate)]
        if not isinstance(coordinate, float) or self.low is None or self.high is None:
            return coordinate
        # Four digits, of the value on a log scale, of the range else: enough, and what the table shows is what ran.
        span = coordinate if self.log else self.high - self.low
        digits = 3 - math.floor(math.log10(span)) if span else 0
        return min(max(round(coordinate, digits), self.low), self.high)

    def holds(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.low is None or self.high is None or not isinstance(value, (int, float)):
            return False
        return self.low <= value <= self.high

    def share_of(self, value: Any) -> float:
        """Where a value lies between the ends, 0 to 1, on the scale that is searched."""
        if self.choices:
            return self.choices.index(value) / max(1, len(self.choices) - 1)
        scale = math.log if self.log else float
        low, high = map(scale, self.ends)
        return (scale(value) - low) / (high - low) if high > low else 0.5


Space = tuple[Dimension, ...]


def defaults_of(space: Space) -> dict[str, Any]:
    """The published settings: the first trial of a study. A default outside its range gives way to the nearest end."""
    return {dimension.key: dimension.default for dimension in space if dimension.default is not None}


def read_space(content: Sequence[Mapping[str, Any]]) -> Space:
    """As sweep.json and MLflow hold it."""
    return tuple(Dimension(**{**found, "choices": tuple(found["choices"])}) for found in content)


def edges_of(space: Space, best: Mapping[str, Any]) -> dict[str, str]:
    """Which of the best values lie at an end of their range: key -> `low` or `high`."""
    found = {}
    for dimension in space:
        value = best.get(dimension.key)
        if value is None or (dimension.choices and not (dimension.is_ordered and dimension.holds(value))):
            continue
        share = dimension.share_of(value)
        margin = 0.0 if dimension.choices else EDGE_SHARE
        if len(dimension.choices) != 1 and (share <= margin or share >= 1 - margin):
            edge = "low" if share <= margin else "high"
            if widened(dimension, edge) != dimension:
                found[dimension.key] = edge
    return found


def are_near(space: Space, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two settings lie close together in each range. Where one diverged, seeds of the other may."""
    known = [d for d in space if d.holds(one.get(d.key)) and d.holds(other.get(d.key))]
    return all(abs(d.share_of(one[d.key]) - d.share_of(other[d.key])) <= NEAR_SHARE for d in known if not d.choices)


def widened(dimension: Dimension, edge: str) -> Dimension:
    """The range to try when the best value lies at an end of this one; the same where nothing lies beyond.

    A range that ends at or above 0 stays there: below, few settings mean anything.
    """
    if dimension.choices:
        return _with_further_choice(dimension, edge)
    least, most = dimension.ends
    if dimension.log:
        low, high = least / WIDEN_FACTOR, most * WIDEN_FACTOR
    else:
        low, high = least - (most - least), most + (most - least)
        low = max(low, 0.0) if least >= 0 else low
    if dimension.integer:
        low, high = max(float(round(low)), 1.0 if dimension.log else low), float(round(high))
    if edge == "low":
        return replace(dimension, low=float(f"{low:.12g}"))
    return replace(dimension, high=float(f"{high:.12g}"))


def _with_further_choice(dimension: Dimension, edge: str) -> Dimension:
    first, last = dimension.choices[0], dimension.choices[-1]
    if (first if edge == "low" else last) <= 0:
        return dimension
    if edge == "high":
        return replace(dimension, choices=(*dimension.choices, last * 2))
    smaller = first // 2 if isinstance(first, int) else first / 2
    return replace(dimension, choices=(smaller, *dimension.choices)) if smaller > 0 else dimension


def describe_range(dimension: Dimension) -> str:
    """As Hydra's sweep syntax has it, ready to be typed."""
    if dimension.choices:
        return f"choice({','.join(_typed(choice) for choice in dimension.choices)})"
    interval = f"interval({dimension.low:.12g},{dimension.high:.12g})"
    return f"tag(log,{interval})" if dimension.log and dimension.key != LR else interval


def as_overrides(params: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_typed(value)}" for key, value in params.items()]


def _typed(value: Any) -> str:
    """A value in Hydra's grammar, which reads it back as the same."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_typed(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_typed(item)}' for key, item in value.items())}}}"
    if not isinstance(value, str) or _PLAIN_WORD.fullmatch(value):
        return repr(value) if isinstance(value, float) else str(value)
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def coordinates(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    return {d.key: d.to_coordinate(params[d.key]) for d in space if d.key in params and d.holds(params[d.key])}


def values(space: Sequence[Dimension], found: Mapping[str, Any]) -> dict[str, Any]:
    return {d.key: d.to_value(found[d.key]) for d in space}
