"""Metrics by the words that people use, and limits on them: `memory<=16GB`, `forgetting<=0.1`, `accuracy>=0.5`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from peftsweep.errors import ConfigError, DataError, Problem
from peftsweep.results import METRICS, Direction
from peftsweep.scores import SCORES

# A word for people -> the metrics that can answer it, the first that was measured.
WORDS = {
    "score": SCORES,
    "accuracy": ("test/accuracy",),
    "similarity": ("test/dino_similarity",),
    "loss": ("test/loss",),
    "memory": ("memory/train_peak_reserved_bytes", "memory/job_peak_reserved_bytes", "memory/job_peak_rss_bytes"),
    "time": ("time/train_seconds",),
    "throughput": ("train/tokens_per_second",),
    "forgetting": ("forgetting_nats",),
    "drift": ("drift",),
    "params": ("adapter/trainable_params",),
    "parameters": ("adapter/trainable_params",),
    "size": ("adapter/file_bytes",),
    "energy": ("energy/train_joules",),
}
# A metric's unit -> what a limit on it may be written in. Bytes need a unit: a bare `memory<=16` would be 16 bytes.
UNITS: dict[str, dict[str, float]] = {
    "bytes": {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "s": {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0},
    "parameters": {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9},
}
PLAIN = {"": 1.0, "%": 0.01}
_LIMIT = re.compile(r"\s*([\w/.-]+)\s*(<=|>=)\s*([+-]?[\d.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z%]*)\s*$")


def candidates(name: str) -> tuple[str, ...]:
    """Keys of METRICS that a word or key can mean. Raises ConfigError for an unknown one, with the nearest."""
    if name in WORDS:
        return WORDS[name]
    if name in METRICS:
        return (name,)
    raise ConfigError(Problem("no metric has this name", name, "the command line", did_you_mean(name)))


def did_you_mean(name: str, known: Sequence[str] = (*WORDS, *METRICS)) -> str:
    """The nearest known words, or the short ones where none is near."""
    close = difflib.get_close_matches(name, known, n=2)
    short = sorted(set(known) - {*METRICS})
    return f"Did you mean {' or '.join(close)}?" if close else f"Choose from: {', '.join(short)}."


def resolve(name: str, measured: Sequence[Iterable[str]]) -> str:
    """The one metric that a word means for all of several rows: the first that all have, else that any has.

    measured: of each row, the keys it has. One metric for all, as the peak of training and that of a whole job are
    not to be compared.

    Raises:
        ConfigError: there is no such metric.
        DataError: no row has it.
    """
    keys, sets = candidates(name), [set(row) for row in measured]
    for enough in (all, any):
        found = next((key for key in keys if sets and enough(key in row for row in sets)), None)
        if found:
            return found
    known = ", ".join(sorted(set().union(*sets))) or "nothing"
    raise DataError(Problem(f"{name} must have been measured", fix=f"Measured were: {known}."))


def sign(key: str) -> int:
    """1 where higher is better, -1 where lower is. Raises ConfigError for a metric that is neither."""
    direction = METRICS[key].direction
    if direction is Direction.NEITHER:
        rule = "a metric to compare by must have a better side"
        raise ConfigError(Problem(rule, key, "the command line", "Choose one such as score, memory or time."))
    return 1 if direction is Direction.HIGHER else -1


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


def parse_limits(texts: Iterable[str]) -> tuple[Limit, ...]:
    """Each text may hold several, separated by commas. Raises ConfigError for what is no limit."""
    return tuple(_parse(part) for text in texts for part in text.split(","))


def _parse(text: str) -> Limit:
    found = _LIMIT.match(text)
    if not found:
        fix = "For example: 'memory<=16GB' or 'forgetting<=0.1'."
        raise ConfigError(Problem("a limit must be written metric<=number or metric>=number", text, fix=fix))
    name, relation, number, unit = found.groups()
    units = UNITS.get(METRICS[candidates(name)[0]].unit, PLAIN)
    factors = {known.lower(): factor for known, factor in units.items()}
    try:
        return Limit(name, float(number) * factors[unit.lower()], relation == "<=", text.strip())
    except (KeyError, ValueError):
        fix = f"Write one of {', '.join(filter(None, units))} after the number."
        raise ConfigError(Problem("a limit must be a number in a unit of its metric", text, fix=fix)) from None
