"""The tables of a page: columns with their units, cells with what they sort by, pairs in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from peftsweep.records.jobs import REFERENCE
from peftsweep.records.metrics import METRICS, Direction, cost_columns, first_measured
from peftsweep.records.quantities import NO_BREAK_SPACE, Quantity, counted, plain, quantity
from peftsweep.records.results import Status
from peftsweep.report.analysis.comparison import Estimate, Group, Row
from peftsweep.report.analysis.sentences import interval_text, needed
from peftsweep.report.figures.comparison import points_of
from peftsweep.statistics.pairs import Pair

SHORT = {"hparams.lr": "lr"}
TRIALS = (Status.OK, Status.PRUNED, Status.OOM, Status.FAILED)
MOST_ROWS, MOST_PAIRS = 200, 300  # on a page; all of them are in comparison.json
First = Literal["ascending", "descending"]


@dataclass(frozen=True)
class Column:
    """first: how it is sorted when it is first asked for; the best on top."""

    title: str
    unit: str = ""
    first: First = "ascending"
    meaning: str = ""


@dataclass(frozen=True)
class Cell:
    """sort: number or text that it is sorted by; None goes last, however one sorts. note: in smaller type
    below, in its own lines."""

    text: str
    sort: float | str | None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """settings: the best. states: what the filter knows the row by. marks: words beside its name."""

    name: str
    settings: str
    cells: tuple[Cell, ...]
    states: tuple[str, ...]
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageTable:
    """untold: how many rows of the group are left out. states: of any row."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    states: tuple[str, ...]
    untold: int


def build_table(group: Group) -> PageTable:
    """The table of a group, with its first rows: what none of them measured has no column."""
    told = replace(group, rows=group.rows[:MOST_ROWS])
    pairs = [*_fixed(told), *_costs(told), *_counts(told)]
    lines = tuple(
        Line(
            row.name,
            _settings(row),
            tuple(cells[number] for _, cells in pairs),
            tuple(_states(row)),
            tuple(_marks(row)),
        )
        for number, row in enumerate(told.rows)
    )
    states = tuple(dict.fromkeys(state for line in lines for state in line.states))
    return PageTable(tuple(column for column, _ in pairs), lines, states, len(group.rows) - len(lines))


def _settings(row: Row) -> str:
    """Lines break between settings, not within one."""
    told = (f"{SHORT.get(key) or quantity(key).name} {plain(value)}" for key, value in row.best.items())
    return ", ".join(text.replace(" ", NO_BREAK_SPACE) for text in told)


Filled = tuple[Column, list[Cell]]


def _fixed(group: Group) -> Iterator[Filled]:
    rows = group.rows
    yield Column("place", meaning="1 is best; = can't be told from the best"), [_place(row) for row in rows]
    if group.score_name:
        yield _estimates(quantity_of(group.score_name, [row.score for row in rows]), [row.score for row in rows])
    defaults = [row.default_score for row in rows]
    if group.score_name and any(defaults):
        shown = quantity_of(group.score_name, defaults)
        yield _estimates(
            Quantity(shown.key, "with default settings", shown.unit, shown.divisor, shown.digits), defaults
        )
    if group.score_name is None and group.objective and any(row.objective is not None for row in rows):
        values = [None if row.objective is None else Estimate(row.objective, None, None, 1) for row in rows]
        yield _estimates(quantity_of(group.objective, values), values)


def _costs(group: Group) -> Iterator[Filled]:
    measured = [row.estimates for row in group.rows if row.estimates]
    for keys in cost_columns().values():
        if key := first_measured(keys, measured):
            values = [row.estimates.get(key) for row in group.rows]
            yield _estimates(quantity_of(key, values), values)


def _counts(group: Group) -> Iterator[Filled]:
    rows = group.rows
    if any(row.seeds for row in rows):
        cells = [Cell(str(len(row.seeds)) if row.seeds else "", len(row.seeds) or None) for row in rows]
        yield Column("seeds", first="descending"), cells
    if any(row.trials for row in rows):
        meaning = "trials of the tuning: " + ", ".join(TRIALS)
        yield Column("trials", first="descending", meaning=meaning), [_trials(row) for row in rows]


def quantity_of(key: str, estimates: Sequence[Estimate | None]) -> Quantity:
    return quantity(key, [estimate.mean for estimate in estimates if estimate])


def _estimates(shown: Quantity, estimates: Sequence[Estimate | None]) -> Filled:
    metric = METRICS[shown.key]
    first: First = "descending" if metric.direction is Direction.HIGHER else "ascending"
    column = Column(shown.name, shown.unit, first, meaning=f"{metric.meaning}; {metric.direction}")
    return column, [_estimate(shown, estimate) for estimate in estimates]


def _estimate(shown: Quantity, estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell("", None)
    return Cell(shown.number(estimate.mean), estimate.mean, interval_text(estimate, shown))


def _place(row: Row) -> Cell:
    if row.place is None:
        return Cell("", None)
    tied = row.place != 1 and row.separated_from_best is False
    return Cell(f"={row.place}" if tied else str(row.place), row.place, "tie" if tied else "")


def _trials(row: Row) -> Cell:
    if not row.trials:
        return Cell("", None)
    known = [f"{row.trials[status]} {status}" for status in row.trials]
    order = {str(status): place for place, status in enumerate(TRIALS)}
    known.sort(key=lambda text: order.get(text.partition(" ")[2], len(order)))
    known += [f"{row.retried} retried"] if row.retried else []
    return Cell(str(sum(row.trials.values())), sum(row.trials.values()), "\n".join(known))


def _states(row: Row) -> Iterator[str]:
    """Words of the filter: each a way to narrow the rows."""
    yield "published reference" if row.origin == REFERENCE else "ranked" if row.place is not None else "not scored"
    if row.place == 1 or row.separated_from_best is False:
        yield "best or tied with it"
    if row.causes:
        yield "with failures"


def _marks(row: Row) -> Iterator[str]:
    if row.origin == REFERENCE:
        yield "published"
    elif row.score is None:
        yield "not scored"
    if row.causes:
        yield counted(sum(row.causes.values()), "failure")


@dataclass(frozen=True)
class PairLine:
    """Two rows compared, in words. sort: difference and p-value."""

    first: str
    second: str
    difference: str
    interval: str
    p_value: str
    verdict: str
    sort: tuple[float, float]
    is_separated: bool


def build_pairs(group: Group) -> tuple[PairLine, ...]:
    """Pairs with the best first; no more than a person could read."""
    best = {row.name for row in group.rows if row.place == 1}
    ordered = sorted(group.pairs, key=lambda pair: not best & {pair.first, pair.second})
    return tuple(_pair(pair, group) for pair in ordered[:MOST_PAIRS])


def _pair(pair: Pair, group: Group) -> PairLine:
    assert group.score_name is not None
    shown = points_of(quantity(group.score_name, [pair.difference]))
    interval = ""
    if pair.low is not None and pair.high is not None:
        interval = f"{shown.number(pair.low, sign=True)} to {shown.number(pair.high, sign=True)}"
    more = needed(pair)
    verdict = "told apart" if pair.is_separated else f"tie; {more} would tell" if more else "tie"
    return PairLine(
        pair.first,
        pair.second,
        shown.number(pair.difference, sign=True),
        interval,
        _p_value(pair.adjusted_p_value),
        verdict,
        (pair.difference, pair.adjusted_p_value),
        pair.is_separated,
    )


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def pairs_title(group: Group) -> str:
    return points_of(quantity(group.score_name)).title if group.score_name else ""
