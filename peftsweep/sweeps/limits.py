"""What a winner must keep to: `memory<=12GB`, `forgetting<=0.1`, any metric of a job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from peftsweep.check import did_you_mean
from peftsweep.errors import ConfigError, Problem
from peftsweep.results import METRICS

# A word for people -> the metrics that can answer it, the first that a job has measured.
WORDS = {
    "memory": ("memory/train_peak_reserved_bytes", "memory/job_peak_rss_bytes"),
    "forgetting": ("forgetting_nats",),
    "parameters": ("adapter/trainable_params",),
    "time": ("time/train_seconds",),
}
# A metric's unit -> what a limit on it may be written in. Bytes need a unit: a bare `memory<=12` would be 12 bytes.
UNITS: dict[str, dict[str, float]] = {
    "bytes": {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "s": {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0},
    "parameters": {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9},
}
PLAIN = {"": 1.0}
_LIMIT = re.compile(r"\s*([\w/.-]+)\s*<=\s*([\d.eE+-]+?)\s*([A-Za-z]*)\s*$")


@dataclass(frozen=True)
class Limit:
    """An upper bound on one metric, in that metric's own unit."""

    name: str
    most: float

    def violation(self, metrics: Mapping[str, float]) -> float | None:
        """By how much a job is above the limit, as a share of it; at most 0 is fine, None was not measured."""
        measured = next((metrics[key] for key in WORDS.get(self.name, (self.name,)) if key in metrics), None)
        return None if measured is None else (measured - self.most) / (abs(self.most) or 1.0)


def parse_limits(text: str | None) -> tuple[Limit, ...]:
    """Several are separated by commas. Raises ConfigError for what is no limit."""
    return tuple(_parse(part) for part in text.split(",")) if text else ()


def _parse(text: str) -> Limit:
    found = _LIMIT.match(text)
    if not found:
        fix = "For example: constraint='memory<=12GB,forgetting<=0.1'."
        raise ConfigError(Problem("a constraint must be written metric<=number", text, "constraint", fix))
    name, number, unit = found.groups()
    if name not in WORDS and name not in METRICS:
        raise ConfigError(
            Problem("no metric has this name", name, "constraint", did_you_mean(name, [*WORDS, *METRICS]))
        )
    units = UNITS.get(METRICS[WORDS.get(name, (name,))[0]].unit, PLAIN)
    factors = {known.lower(): factor for known, factor in units.items()}
    try:
        return Limit(name, float(number) * factors[unit.lower()])
    except (KeyError, ValueError):
        written = ", ".join(unit for unit in units if unit)
        rule = "a limit must be a number in a unit of its metric"
        fix = f"Write one of {written} after the number." if written else "It has no unit."
        raise ConfigError(Problem(rule, text, "constraint", fix)) from None
