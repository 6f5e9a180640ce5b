"""How numbers are written for people: a name, a unit that suits all values of one column or axis, enough digits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from peftsweep.records.metrics import METRICS, Metric, plain_name

SETTING_NAMES = {"hparams.lr": "learning rate"}
LADDERS = {
    "bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "s": ((7200.0, "h"), (300.0, "min"), (0.0, "s")),
    "parameters": ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"), (1.0, "")),
    "tokens": ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"), (1.0, "")),
    "J": ((1e6, "MJ"), (1e3, "kJ"), (0.0, "J")),
}
DIVISORS = {"h": 3600.0, "min": 60.0, "s": 1.0, "J": 1.0}  # where they differ from the ladder's step
MOST_LISTED, FEW = 20, 5  # names in one sentence; of more, the first few
MINUS = "\N{MINUS SIGN}"
SAYS_NOTHING = "says nothing yet"  # an interval from one end of a metric to the other
NARROW_SPACE, NO_BREAK_SPACE = "\N{NARROW NO-BREAK SPACE}", "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Quantity:
    """What a column or an axis shows. divisor: from the metric's own unit to the one shown."""

    key: str
    name: str
    unit: str
    divisor: float
    digits: int  # after the point

    @property
    def title(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def as_difference(self) -> Quantity:
        """How a difference of two such values is shown: of shares, in percentage points."""
        return replace(self, unit="percentage points", digits=1) if self.unit == "%" else self

    def number(self, value: float, *, sign: bool = False) -> str:
        """Without its unit, which the header has."""
        text = f"{value / self.divisor:{'+' if sign else ''},.{self.digits}f}"
        bare = text.lstrip("+-")
        return bare if not bare.strip("0.,") else text.replace("-", MINUS)

    def tells_nothing(self, low: float, high: float) -> bool:
        """Whether an interval leaves out no value that the metric can have."""
        return [self.number(low), self.number(high)] == [self.number(end) for end in METRICS[self.key].ends]

    def text(self, value: float, *, sign: bool = False) -> str:
        space = "" if self.unit in ("", "%") else NARROW_SPACE
        return f"{self.number(value, sign=sign)}{space}{self.unit}"


def quantity(key: str, values: Iterable[float] = ()) -> Quantity:
    """The quantity that a metric or setting is shown as. values: all that will stand in one column or on one axis."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    smallest, largest = min(sizes, default=0.0), max(sizes, default=0.0)
    metric = METRICS.get(key)
    name, unit = (metric.label, metric.unit) if metric else (SETTING_NAMES.get(key, plain_name(key)), "")
    if metric and metric.is_percent:
        return Quantity(key, name, "%", 0.01, 1)
    if unit in LADDERS:
        step, shown = next((rung for rung in LADDERS[unit] if largest >= rung[0]), LADDERS[unit][-1])
        divisor = DIVISORS.get(shown, step)
        is_whole = divisor == 1 and unit not in ("s", "J")
        return Quantity(key, name, shown, divisor, 0 if is_whole else _digits(smallest / divisor, largest / divisor))
    if unit == "tokens/s":
        return Quantity(key, name, unit, 1.0, 0 if largest >= 10 else 1)
    return Quantity(key, name, unit, 1.0, 3 if largest < 10 else _digits(smallest, largest))


def _digits(smallest: float, largest: float) -> int:
    """So many that three count for the largest of a column, and two for the smallest, but no more than three."""
    if largest <= 0:
        return 0
    wanted = max(2 - math.floor(math.log10(largest)), 1 - math.floor(math.log10(smallest)))
    return min(max(wanted, 0), 3)


def plain(value: object) -> str:
    """A setting as one types it, short: 0.0037, 1e-5, 64, true, null."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        return short_number(value)
    return str(value)


def short_number(value: float) -> str:
    """Up to four digits that count; powers of ten where zeros would have to be counted otherwise."""
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.3e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    else:
        text = f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", MINUS) if value < 0 else text


def joined(names: Iterable[str]) -> str:
    """a, b and c."""
    *first, last = [*names] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def some(names: Sequence[str], separator: str = ", ") -> str:
    """All of them; of more than a reader would read, the first few and how many more there are."""
    if len(names) > MOST_LISTED:
        names = [*names[:FEW], f"{len(names) - FEW:,} more"]
    return separator.join(names)


def counted(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def format_metric(metric: Metric, value: float) -> str:
    """One value in a unit that suits it."""
    return quantity(metric.key, [value]).text(value).replace(NARROW_SPACE, " ")


def format_interval(metric: Metric, interval: tuple[float, float] | None) -> str:
    """`81.2% to 89.2%`; empty where there is none."""
    if interval is None or quantity(metric.key).tells_nothing(*interval):
        return "" if interval is None else SAYS_NOTHING
    return " to ".join(format_metric(metric, end) for end in interval)


def format_settings(settings: Mapping[str, object], *, short: bool = False) -> str:
    """`learning rate 0.001, capacity 8`; short: `lr 0.001, capacity 8`. One without a value is left out."""
    names = {key: key.rpartition(".")[2] if short else quantity(key).name for key in settings}
    return ", ".join(f"{names[key]} {plain(value)}" for key, value in settings.items() if value is not None)
