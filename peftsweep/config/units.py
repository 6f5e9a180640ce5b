"""Amounts with a unit, as people write them: 24GB, 90%, 2h."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from peftsweep.errors import ConfigError, Problem

COMMAND_LINE = "the command line"
# A metric's unit -> what a limit on it may be written in. Bytes need a unit: a bare `memory<=16` would be 16 bytes.
UNITS: dict[str, dict[str, float]] = {
    "": {"": 1.0, "%": 0.01},
    "bytes": {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "s": {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0},
    "parameters": {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9},
    "nats": {"": 1.0, "nats": 1.0},
    "J": {"": 1.0, "J": 1.0, "kJ": 1e3, "MJ": 1e6, "Wh": 3600.0, "kWh": 3.6e6},
}
_AMOUNT = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([A-Za-z]+)\s*$")


def parse_bytes(text: str, source: str = COMMAND_LINE) -> int:
    """`24GB` as bytes. Raises ConfigError for what is no amount of memory above 0."""
    found = _AMOUNT.match(text)
    factors = {known.lower(): factor for known, factor in UNITS["bytes"].items()}
    amount = round(float(found[1]) * factors.get(found[2].lower(), 0.0)) if found else 0
    if amount == 0:
        fix = f"For example: 24GB. {ways_to_write(UNITS['bytes'])}"
        raise ConfigError(Problem("memory must be a number above 0 and a unit", text, source, fix))
    return amount


def parse_margin(text: str, source: str = "confirm.margin") -> float:
    """A difference of two scores, `2%` or `0.02`. Raises ConfigError for what is none, or lies below 0."""
    number, is_percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        margin = float(number) * (0.01 if is_percent else 1.0)
    except ValueError:
        margin = math.nan
    if not 0 <= margin < math.inf:
        rule = "a margin must be a difference of two scores, 0 or more, without another unit"
        raise ConfigError(Problem(rule, text, source, "For example: confirm.margin=2% or confirm.margin=0.02."))
    return margin


def ways_to_write(units: Mapping[str, float]) -> str:
    named = ", ".join(filter(None, units))
    if "" not in units:
        return f"Write one of {named} after the number."
    return f"Write the number alone, or one of {named} after it." if named else "Write the number alone."
