"""Limits on metrics, by the words that people use: `memory<=16GB`, `forgetting<=0.1`, `accuracy>=50%`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from peftsweep.config.units import COMMAND_LINE, UNITS, ways_to_write
from peftsweep.errors import ConfigError, Problem
from peftsweep.records.metrics import METRICS, candidates, first_measured

PLAIN = {"": 1.0}
_LIMIT = re.compile(r"\s*([\w/.-]+)\s*(<=|>=)\s*([+-]?[\d.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z%]*)\s*$")


@dataclass(frozen=True)
class Limit:
    """A bound on one metric, in that metric's own unit. at_most: an upper bound, else a lower one."""

    name: str
    bound: float
    at_most: bool
    text: str  # as it was typed

    def violation(self, value: float) -> float:
        """By how much a value breaks the limit, as a share of it; 0 or less: it keeps to it."""
        over = value - self.bound if self.at_most else self.bound - value
        return over / (abs(self.bound) or 1.0)


def violations(limits: Iterable[Limit], measured: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Of each job, by name, how much of each limit it is off, at most 0 where it keeps to it.

    measured: the metrics of every job of the comparison, since a word such as `memory` means one metric for all of
    them (`first_measured`); what a job did not measure is left out. Of two limits on one metric, the one that is
    broken more counts.
    """
    found: list[dict[str, float]] = [{} for _ in measured]
    for limit in limits:
        key = first_measured(candidates(limit.name), measured)
        for metrics, broken in zip(measured, found, strict=True):
            if key is not None and key in metrics:
                broken[limit.name] = max(limit.violation(metrics[key]), broken.get(limit.name, -math.inf))
    return found


def parse_limits(texts: Iterable[str], source: str = COMMAND_LINE) -> tuple[Limit, ...]:
    """Each text may hold several, separated by commas. Raises ConfigError for what is no limit.

    source: where the texts were found, for the error.
    """
    return tuple(_parse(part, source) for text in texts for part in text.split(","))


def _parse(text: str, source: str) -> Limit:
    found = _LIMIT.match(text)
    if not found:
        fix = "For example: 'memory<=12GB' or 'forgetting<=0.1'."
        raise ConfigError(Problem("a limit must be written metric<=number or metric>=number", text, source, fix))
    name, relation, number, unit = found.groups()
    metric = METRICS[candidates(name, source)[0]]
    units = UNITS.get(metric.unit, PLAIN)
    factors = {known.lower(): factor for known, factor in units.items()}
    try:
        return Limit(name, float(number) * factors[unit.lower()], relation == "<=", text.strip())
    except (KeyError, ValueError):
        rule = "a limit must be a number in a unit of its metric"
        raise ConfigError(Problem(rule, text, source, ways_to_write(units))) from None
