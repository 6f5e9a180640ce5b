"""The comparison as tables: on the console, as CSV for programs, as Markdown for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from peftsweep.records.jobs import REFERENCE
from peftsweep.records.metrics import METRICS, cost_columns, first_measured, score_keys
from peftsweep.records.quantities import counted, format_metric
from peftsweep.report.analysis.comparison import Comparison, Estimate, Group, Row
from peftsweep.statistics.pairs import Pair

FILE_WIDTH = 160  # characters of a line where there is no terminal
MOST_PRINTED, MOST_WRITTEN = 100, 1000  # rows of one group, on the console and in table.md; all are in table.csv
MOST_NOTES = 100  # of one kind
LEFT_ALIGNED = {"method", "best settings"}
SHORT = {"hparams.lr": "lr", "method.capacity": "capacity"}


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """All groups, with everything that must be known beside the ranking."""
    console = console or Console()
    console = console if console.is_terminal else Console(width=FILE_WIDTH, file=console.file)
    for group in comparison.groups:
        console.print(_console_table(group))
    for line in _left_out(comparison):
        console.print(Text(line), soft_wrap=True)


def _left_out(comparison: Comparison) -> Iterator[str]:
    yield from comparison.warnings
    yield from _first([f"left out: {reason}" for reason in comparison.unreadable], MOST_NOTES, "comparison.json")


def _first(lines: Sequence[str], most: int, rest_is_in: str) -> Iterator[str]:
    yield from lines[:most]
    if len(lines) > most:
        yield f"... and {len(lines) - most:,} more, in {rest_is_in}."


def _console_table(group: Group) -> RenderableType:
    titles, rows = readable(group, MOST_PRINTED)
    table = Table(title=group.title, title_justify="left", box=box.SIMPLE_HEAD)
    for title in titles:
        table.add_column(title, justify="left" if title in LEFT_ALIGNED else "right", overflow="fold")
    for cells in rows:
        table.add_row(*map(Text, cells))
    return Lines(table, *(Text(line) for line in (*_cut(group, MOST_PRINTED), *notes(group))), Text(""))


def _cut(group: Group, most: int) -> Iterator[str]:
    if len(group.rows) > most:
        yield f"... and {len(group.rows) - most:,} more rows, in table.csv."


def readable(group: Group, most: int = MOST_WRITTEN) -> tuple[list[str], list[list[str]]]:
    """Titles, and a line of text for each of the first rows; costs that nobody measured have no column."""
    measured = [row.estimates for row in group.rows if row.estimates]
    costs = {title: key for title, keys in cost_columns().items() if (key := first_measured(keys, measured))}
    has_trials = any(row.trials for row in group.rows)
    titles = ["place", "method", _score_title(group), "95% interval", "seeds", *costs]
    titles += ["trials"] if has_trials else []
    titles += ["best settings"]
    return titles, [_cells(row, costs, has_trials) for row in group.rows[:most]]


def _score_title(group: Group) -> str:
    return (group.score_name or "test score").rpartition("/")[2].replace("_", " ")


def _cells(row: Row, costs: dict[str, str], has_trials: bool) -> list[str]:
    score = next((key for key in score_keys() if key in row.estimates), "test/score")
    cells = [_place(row), row.name, _value(row.score, score), _interval(row.score, score), _seeds(row)]
    cells += [_value(row.estimates.get(key), key).removesuffix(f" {title}") for title, key in costs.items()]
    cells += [_trials(row)] if has_trials else []
    return [*cells, " ".join(f"{SHORT.get(name, name)}={value}" for name, value in row.best.items())]


def _place(row: Row) -> str:
    """`=` marks what can't be told from the best."""
    if row.origin == REFERENCE:
        return "reference"
    tied = "=" if row.place != 1 and row.separated_from_best is False else ""
    return "" if row.place is None else f"{tied}{row.place}"


def _seeds(row: Row) -> str:
    return str(len(row.seeds)) if row.seeds else ""


def _value(estimate: Estimate | None, key: str) -> str:
    return format_metric(METRICS[key], estimate.mean) if estimate else ""


def _interval(estimate: Estimate | None, key: str) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{format_metric(METRICS[key], estimate.low)} to {format_metric(METRICS[key], estimate.high)}"


def _trials(row: Row) -> str:
    counts = {**dict(sorted(row.trials.items())), **({"retried": row.retried} if row.retried else {})}
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def notes(group: Group) -> Iterator[str]:
    """Sentences under a table: ties, what would separate them, warnings."""
    best = next((row for row in group.rows if row.place == 1), None)
    tied = [row.name for row in group.rows if row.place not in (None, 1) and row.separated_from_best is False]
    if best and tied:
        pairs = counted(len(group.pairs), "pair")
        yield f"= can't be told from {best.name} (5%, Holm over {pairs}): {', '.join(tied)}."
        yield from (needs(pair, group.score_name) for pair in group.pairs if _is_of(pair, best.name, tied))
    yield from group.warnings
    yield from _first([warning for row in group.rows for warning in row.warnings], MOST_NOTES, "table.csv")
    yield from _first([f"{row.name}: {edge}" for row in group.rows for edge in row.edges], MOST_NOTES, "table.csv")
    causes = [f"{row.name}: {count} x {cause}" for row in group.rows for cause, count in row.causes.items()]
    yield from _first(causes, MOST_NOTES, "comparison.json")


def _is_of(pair: Pair, best: str, tied: Sequence[str]) -> bool:
    return not pair.is_separated and best in (pair.first, pair.second) and {pair.first, pair.second} <= {best, *tied}


def needs(pair: Pair, score: str | None) -> str:
    """What it would take to tell two rows apart."""
    names = f"{pair.first} and {pair.second}"
    if pair.difference == 0:
        return f"{names}: the same score."
    gap = _points(pair.difference, score)
    if pair.more_seeds:
        seeds = "1 more seed" if pair.more_seeds == 1 else f"{pair.more_seeds} more seeds"
        return f"{names}: {seeds} each would show a gap like this one ({gap}), 4 times in 5."
    if pair.more_items:
        items = f"about {pair.more_items:,} more test items"
        return f"{names}: more seeds would not show a gap like this one ({gap}), {items} might."
    return f"{names}: neither more seeds nor more test items alone would show a gap like this one ({gap})."


def _points(difference: float, score: str | None) -> str:
    """Of shares, in percentage points."""
    text = format_metric(METRICS[score], abs(difference)) if score else f"{abs(difference):.4f}"
    return f"{text.removesuffix('%')} points" if text.endswith("%") else text


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
    record |= {"score_name": group.score_name if row.score else None, **_spread("score", row.score)}
    record |= {"seeds": len(row.seeds), "separated_from_best": row.separated_from_best, "objective": row.objective}
    record |= _spread("default_score", row.default_score)
    record |= {f"trials_{status}": row.trials.get(status, 0) for status in ("ok", "pruned", "oom", "failed")}
    record |= {"trials_retried": row.retried, "tune_tokens": row.tune_tokens, "tune_seconds": row.tune_seconds}
    record |= row.best
    for key, estimate in row.estimates.items():
        record |= _spread(key, estimate)
    return record | {"warnings": " ".join([*group.warnings, *row.warnings, *row.edges])}


def _spread(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    low, mean, high = (estimate.low, estimate.mean, estimate.high) if estimate else (None, None, None)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def to_markdown(comparison: Comparison) -> str:
    """The tables as people read them, each with its notes."""
    parts = []
    for group in comparison.groups:
        titles, rows = readable(group)
        rule = [":--" if title in LEFT_ALIGNED else "--:" for title in titles]
        lines = [_markdown_line(cells) for cells in (titles, rule, *rows)]
        told = [f"- {note}" for note in (*_cut(group, MOST_WRITTEN), *notes(group))]
        parts.append("\n".join([f"## {group.title}", "", *lines, "", *told]).rstrip())
    return "\n\n".join([*parts, *_left_out(comparison)]) + "\n"


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
