"""Which metric a word means for several rows at once, and which of two values is better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from peftsweep.config.units import COMMAND_LINE
from peftsweep.errors import ConfigError, DataError, Problem
from peftsweep.records.limits import candidates
from peftsweep.records.metrics import METRICS, Direction


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
        raise ConfigError(Problem(rule, key, COMMAND_LINE, "Choose one such as score, memory or time."))
    return 1 if direction is Direction.HIGHER else -1
