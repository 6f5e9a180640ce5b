"""Limits on metrics, by the words that people use: `memory<=16GB`, `forgetting<=0.1`, `accuracy>=50%`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from peftsweep.config.units import COMMAND_LINE, UNITS, ways_to_write
from peftsweep.errors import ConfigError, Problem
from peftsweep.records.metrics import METRICS, candidates

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

    def measured(self, metrics: Mapping[str, float]) -> float | None:
        """The value that one job has for it."""
        return next((metrics[key] for key in candidates(self.name) if key in metrics), None)


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
