"""The tables of a page: all methods, and pairs of them in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peftsweep.records.jobs import REFERENCE
from peftsweep.records.quantities import NO_BREAK_SPACE, counted, format_settings, quantity
from peftsweep.report.analysis.comparison import Group, Row
from peftsweep.report.analysis.sentences import needed
from peftsweep.report.columns import Cell, Column, build_columns
from peftsweep.statistics.pairs import Pair

MOST_ROWS, MOST_PAIRS = 200, 300  # on a page; all of them are in comparison.json


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
    rows = group.rows[:MOST_ROWS]
    columns = build_columns(group, rows)
    lines = tuple(
        Line(
            row.name,
            # Lines break between settings, not within one.
            format_settings(row.best, short=True).replace(" ", NO_BREAK_SPACE).replace(f",{NO_BREAK_SPACE}", ", "),
            tuple(cells[number] for _, cells in columns),
            tuple(_states(row)),
            tuple(_marks(row)),
        )
        for number, row in enumerate(rows)
    )
    states = tuple(dict.fromkeys(state for line in lines for state in line.states))
    return PageTable(tuple(column for column, _ in columns), lines, states, len(group.rows) - len(lines))


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
    shown = quantity(group.score_name, [pair.difference]).as_difference
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
        "< 0.001" if pair.adjusted_p_value < 0.001 else f"{pair.adjusted_p_value:.3f}",
        verdict,
        (pair.difference, pair.adjusted_p_value),
        pair.is_separated,
    )


def pairs_title(group: Group) -> str:
    return quantity(group.score_name).as_difference.title if group.score_name else ""
