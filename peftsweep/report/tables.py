"""The comparison as tables: on the console, as CSV for programs, as Markdown for people; and their columns, which the
page shows too: each in one unit that suits all of its numbers, what nobody measured left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from peftsweep.records.jobs import REFERENCE
from peftsweep.records.metrics import METRICS, cost_columns, first_measured
from peftsweep.records.quantities import NARROW_SPACE, counted, format_settings, quantity
from peftsweep.report.analysis.comparison import Comparison, Estimate, Group, Row
from peftsweep.report.analysis.sentences import detectable, interval_text
from peftsweep.statistics.pairs import Pair

FILE_WIDTH = 160  # characters of a line where there is no terminal
MOST_PRINTED, MOST_WRITTEN = 100, 1000  # rows of one group, on the console and in table.md; all are in table.csv
MOST_NOTES = 100  # of one kind
LEFT_ALIGNED = {"method", "trials", "best settings"}
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


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """All groups, with everything that must be known beside the ranking."""
    console = console or Console()
    console = console if console.is_terminal else Console(width=FILE_WIDTH, file=console.file)
    for group in comparison.groups:
        lines = (*_cut(group, MOST_PRINTED), *notes(group), "")
        tables = _tables(*readable(group, MOST_PRINTED), console.width)
        console.print(Lines(Text(group.title, "italic"), *tables, *map(Text, lines)))
    for line in _left_out(comparison):
        console.print(Text(line), soft_wrap=True)


def _left_out(comparison: Comparison) -> Iterator[str]:
    yield from comparison.warnings
    yield from _first([f"left out: {reason}" for reason in comparison.unreadable], MOST_NOTES, "comparison.json")


def _first(lines: Sequence[str], most: int, rest_is_in: str) -> Iterator[str]:
    yield from lines[:most]
    if len(lines) > most:
        yield f"... and {len(lines) - most:,} more, in {rest_is_in}."


def _tables(titles: list[str], rows: list[list[str]], width: int) -> Iterator[Table]:
    """As many tables beneath each other as `width` asks for, each led by place and method."""
    heads = [title.replace(", ", "\n") for title in titles]
    texts = zip(heads, *rows, strict=True)
    widths = [max(cell_len(line) for text in column for line in text.split("\n")) + 3 for column in texts]
    lead, rest = [0, 1], list(range(2, len(heads)))
    while rest:
        ends = accumulate((widths[i] for i in rest), initial=sum(widths[i] for i in lead) + 2)
        count = max(1, sum(end <= width for end in ends) - 1)
        shown, rest = [*lead, *rest[:count]], rest[count:]
        table = Table(box=box.SIMPLE_HEAD)
        for i in shown:
            is_left = titles[i] in LEFT_ALIGNED
            justify: JustifyMethod = "left" if is_left else "right"
            table.add_column(heads[i], justify=justify, overflow="fold", no_wrap=not is_left)
        for cells in rows:
            table.add_row(*(Text(cells[i]) for i in shown))
        yield table


def _cut(group: Group, most: int) -> Iterator[str]:
    if len(group.rows) > most:
        yield f"... and {len(group.rows) - most:,} more rows, in table.csv."


def readable(group: Group, most: int = MOST_WRITTEN) -> tuple[list[str], list[list[str]]]:
    """Titles, and a line of text for each of the first rows; costs that nobody measured have no column."""
    rows = group.rows[:most]
    (_, places), *columns = build_columns(group, rows)
    titles, texts = ["place", "method"], [[cell.text for cell in places], [row.name for row in rows]]
    texts[0] = ["reference" if row.origin == REFERENCE else text for row, text in zip(rows, texts[0], strict=True)]
    for number, (column, cells) in enumerate(columns):
        unit = column.unit if column.unit not in ("", column.short) else ""
        titles.append(f"{column.short or column.title}{', ' * bool(unit)}{unit}")
        notes = [cell.note.replace(NARROW_SPACE, " ").replace("\n", ", ") for cell in cells]
        texts.append(notes if column.title == "trials" else [cell.text for cell in cells])
        if number == 0 and group.score_name:
            titles.append("95% interval")
            texts.append(notes)
    titles.append("best settings")
    texts.append([format_settings(row.best, short=True) for row in rows])
    return titles, [list(cells) for cells in zip(*texts, strict=True)]


def notes(group: Group) -> Iterator[str]:
    """Sentences under a table: ties, what would separate them, warnings."""
    best = next((row for row in group.rows if row.place == 1), None)
    tied = [row.name for row in group.rows if row.place not in (None, 1) and row.separated_from_best is False]
    if best and tied:
        pairs = counted(len(group.pairs), "pair")
        yield f"= can't be told from {best.name} (5%, Holm over {pairs}): {', '.join(tied)}."
        for pair in group.pairs:
            names = {pair.first, pair.second}
            if not pair.is_separated and best.name in names and names <= {best.name, *tied}:
                yield needs(pair, group.score_name)
    yield from group.warnings
    yield from _first([warning for row in group.rows for warning in row.warnings], MOST_NOTES, "table.csv")
    yield from _first([f"{row.name}: {edge}" for row in group.rows for edge in row.edges], MOST_NOTES, "table.csv")
    causes = [f"{row.name}: {count} x {cause}" for row in group.rows for cause, count in row.causes.items()]
    yield from _first(causes, MOST_NOTES, "comparison.json")


def needs(pair: Pair, score: str | None) -> str:
    """How far apart two rows look, and how far apart they would have to be."""
    names = f"{pair.first} and {pair.second}"
    if pair.difference == 0 or score is None:
        return f"{names}: the same score."
    gap = quantity(score, [pair.difference]).as_difference.text(abs(pair.difference)).replace(NARROW_SPACE, " ")
    if pair.detectable is None:
        return f"{names}: {gap} apart, two adapters of one seed each."
    return f"{names}: {gap} apart; these seeds and test items show {detectable(pair, score)}, 4 times in 5."


def to_csv(comparison: Comparison) -> str:
    """One line for each row of each group, in the metrics' own units; empty where nothing was measured."""
    records = [_record(group, row) for group in comparison.groups for row in group.rows]
    columns = list(dict.fromkeys(column for record in records for column in record))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def _record(group: Group, row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {"group": group.title, "place": row.place, "name": row.name, "method": row.method}
    record |= {"model": row.model, "task": row.task, "origin": row.origin, "study": row.study}
    record |= {"score_name": group.score_name if row.score else None, **_with_interval("score", row.score)}
    record |= {"seeds": len(row.seeds), "separated_from_best": row.separated_from_best, "objective": row.objective}
    record |= _with_interval("default_score", row.default_score)
    record |= {f"trials_{status}": row.trials.get(status, 0) for status in TRIALS}
    record |= {"trials_retried": row.retried, "tune_tokens": row.tune_tokens, "tune_seconds": row.tune_seconds}
    record |= row.best
    for key, estimate in row.estimates.items():
        record |= _with_interval(key, estimate)
    return record | {"warnings": " ".join([*group.warnings, *row.warnings, *row.edges])}


def _with_interval(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    low, mean, high = (estimate.low, estimate.mean, estimate.high) if estimate else (None, None, None)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def to_markdown(comparison: Comparison) -> str:
    """The tables as people read them, each with its notes."""
    parts = []
    for group in comparison.groups:
        titles, rows = readable(group)
        rule = [":--" if title in LEFT_ALIGNED else "--:" for title in titles]
        texts = ([cell.replace("|", "\\|").replace("\n", " ") for cell in cells] for cells in (titles, rule, *rows))
        lines = [f"| {' | '.join(cells)} |" for cells in texts]
        told = [f"- {note}" for note in (*_cut(group, MOST_WRITTEN), *notes(group))]
        parts.append("\n".join([f"## {group.title}", "", *lines, "", *told]).rstrip())
    return "\n\n".join([*parts, *_left_out(comparison)]) + "\n"
