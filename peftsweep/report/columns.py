"""The columns of a group's table, which console, Markdown and page show alike: each in one unit that suits all of its
numbers, what nobody measured left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from peftsweep.records.metrics import METRICS, cost_columns, first_measured
from peftsweep.records.quantities import quantity
from peftsweep.report.analysis.comparison import Estimate, Group, Row
from peftsweep.report.analysis.sentences import interval_text

TRIALS = ("ok", "pruned", "oom", "failed")  # the order in which they are told
First = Literal["ascending", "descending"]


@dataclass(frozen=True)
class Column:
    """short: the title where room is scarce. first: how it is sorted when it is first asked for; the best on top."""

    title: str
    unit: str = ""
    first: First = "ascending"
    meaning: str = ""
    short: str = ""


@dataclass(frozen=True)
class Cell:
    """sort: number or text that it is sorted by; None goes last, however one sorts. note: in smaller type below, in its
    own lines."""

    text: str = ""
    sort: float | str | None = None
    note: str = ""


Filled = tuple[Column, list[Cell]]


def build_columns(group: Group, rows: Sequence[Row]) -> list[Filled]:
    """Each column with a cell for each of these rows of the group; the first is their place."""
    found = [(Column("place", meaning="1 is best; = can't be told from the best"), [_place(row) for row in rows])]
    if group.score_name:
        found.append(_estimates(group.score_name, [row.score for row in rows]))
        if any(row.default_score for row in rows):
            defaults = [row.default_score for row in rows]
            found.append(_estimates(group.score_name, defaults, "with default settings", "default"))
    elif group.objective and any(row.objective is not None for row in rows):
        values = [None if row.objective is None else Estimate(row.objective, None, None, 1) for row in rows]
        found.append(_estimates(group.objective, values))
    measured = [row.estimates for row in rows if row.estimates]
    for short, keys in cost_columns().items():
        if key := first_measured(keys, measured):
            found.append(_estimates(key, [row.estimates.get(key) for row in rows], short=short))
    if any(row.seeds for row in rows):
        seeds = [Cell(str(len(row.seeds)), len(row.seeds)) if row.seeds else Cell() for row in rows]
        found.append((Column("seeds", first="descending"), seeds))
    if any(row.trials for row in rows):
        meaning = "trials of the tuning: " + ", ".join(TRIALS)
        found.append((Column("trials", first="descending", meaning=meaning), [_trials(row) for row in rows]))
    return found


def _place(row: Row) -> Cell:
    if row.place is None:
        return Cell()
    tied = row.place != 1 and row.separated_from_best is False
    return Cell(f"={row.place}" if tied else str(row.place), row.place, "tie" if tied else "")


def _estimates(key: str, estimates: Sequence[Estimate | None], title: str = "", short: str = "") -> Filled:
    metric, shown = METRICS[key], quantity(key, [estimate.mean for estimate in estimates if estimate])
    column = Column(
        title or shown.name,
        shown.unit,
        "descending" if metric.higher_is_better else "ascending",
        f"{metric.meaning}; {metric.direction}",
        short or title or shown.name,
    )
    return column, [
        Cell(shown.number(estimate.mean), estimate.mean, interval_text(estimate, shown)) if estimate else Cell()
        for estimate in estimates
    ]


def _trials(row: Row) -> Cell:
    if not row.trials:
        return Cell()
    known = sorted(row.trials, key=lambda status: TRIALS.index(status) if status in TRIALS else len(TRIALS))
    told = [f"{row.trials[status]} {status}" for status in known] + ([f"{row.retried} retried"] if row.retried else [])
    return Cell(str(sum(row.trials.values())), sum(row.trials.values()), "\n".join(told))
