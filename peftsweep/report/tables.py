"""The comparison as tables: on the console, as CSV for programs, as Markdown for people; and their columns, which the
page shows too: each in one unit that suits all of its numbers, what nobody measured left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.console import Group as Lines
from rich.text import Text

from peftsweep.records.jobs import REFERENCE
from peftsweep.records.metrics import METRICS, cost_columns, first_measured
from peftsweep.records.quantities import NARROW_SPACE, counted, format_settings, quantity, some
from peftsweep.report.analysis.comparison import Comparison, Estimate, Failure, Group, Row
from peftsweep.report.analysis.sentences import answer, interval_text
from peftsweep.report.analysis.verdict import MOST_NAMES
from peftsweep.report.fitting import TextColumn, print_table
from peftsweep.statistics.collapse import collapse_rate_limit

FILE_WIDTH = 160  # characters of a line where there is no terminal
MOST_PRINTED, MOST_WRITTEN = 100, 1000  # rows of one group, on the console and in table.md; all are in table.csv
MOST_NOTES = 100  # of one kind
EACH_SEED, TRIALS_ENDED = "each seed", "trials"  # columns whose notes say more than their texts
LEFT_ALIGNED = {"method", EACH_SEED, TRIALS_ENDED, "best settings"}
SEEDS_IN_A_LINE = 5
TRIALS = ("ok", "pruned", "oom", "failed")  # the order in which they are told
# Of the columns on a terminal, which give way first where it is narrow; the score stays longest.
SCORE_COLUMN, MOST_IMPORTANT, OF_COSTS = 2, 9, 5
IMPORTANCE = {"place": 8, "95% interval": 8, "seeds": 7, "default": 6, "best settings": 4, TRIALS_ENDED: 3, "gained": 2}
IMPORTANCE[EACH_SEED] = 1
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
    found = [
        (
            Column("place", meaning="by mean score; =: shown to be as good as the best"),
            [_place(row) for row in rows],
        )
    ]
    if group.score_name:
        found.append(_estimates(group.score_name, [row.score for row in rows]))
        if any(len(row.seed_scores) > 1 for row in rows):
            found.append(_each_seed(group.score_name, rows))
        if any(row.default_score for row in rows):
            found += _defaults(group.score_name, rows)
    elif group.objective and any(row.objective is not None for row in rows):
        values = [None if row.objective is None else Estimate(row.objective, None, None, 1) for row in rows]
        found.append(_estimates(group.objective, values))
    measured = [row.estimates for row in rows if row.estimates]
    for short, keys in cost_columns().items():
        if key := first_measured(keys, measured):
            found.append(_estimates(key, [row.estimates.get(key) for row in rows], short=short))
    if any(row.seeds for row in rows):
        meaning = "jobs that count; below: how many of such seeds may collapse, at most (95% confidence)"
        found.append((Column("seeds", first="descending", meaning=meaning), [_seeds(row) for row in rows]))
    if any(row.trials for row in rows):
        meaning = "trials of the tuning: " + ", ".join(TRIALS)
        found.append((Column(TRIALS_ENDED, first="descending", meaning=meaning), [_trials(row) for row in rows]))
    return found


def _place(row: Row) -> Cell:
    if row.place is None:
        return Cell()
    if row.is_equal and row.place != 1:
        return Cell(f"={row.place}", row.place, "as good")
    return Cell(str(row.place), row.place, "not told apart" if _is_open(row) else "")


def _is_open(row: Row) -> bool:
    """Whether it is neither known to be behind the best nor to be as good."""
    return row.place != 1 and row.separated_from_best is False and not row.is_equal


def _each_seed(key: str, rows: Sequence[Row]) -> Filled:
    """From which score to which; below it the score of each seed, in the order of seeds, a few in a line."""
    shown = quantity(key, [score for row in rows for score in row.seed_scores])
    cells = []
    for row in rows:
        texts = [shown.number(score) for score in row.seed_scores]
        lines = [" ".join(texts[i : i + SEEDS_IN_A_LINE]) for i in range(0, len(texts), SEEDS_IN_A_LINE)]
        ends = [shown.number(end) for end in (min(row.seed_scores), max(row.seed_scores))] if texts else []
        cells.append(Cell(" to ".join(ends), min(row.seed_scores, default=None), "\n".join(lines)))
    meaning = "the lowest and the highest seed; below, each in the order of seeds; sorted by the lowest"
    return Column(EACH_SEED, shown.unit, "descending", meaning), cells


def _low_seeds(row: Row) -> Iterator[str]:
    if collapsed := [str(seed) for seed in row.collapsed if seed not in row.diverged]:
        yield f"collapsed: {', '.join(collapsed)}"
    if row.diverged:
        yield f"diverged: {', '.join(map(str, row.diverged))}"


def _defaults(key: str, rows: Sequence[Row]) -> Iterator[Filled]:
    """The published settings' score, and what tuning gained over it with the seeds that both have."""
    yield _estimates(key, [row.default_score for row in rows], "with default settings", "default")
    gains = [row.default_gain for row in rows]
    shown = quantity(key, [gain.mean for gain in gains if gain]).as_difference
    cells = [
        Cell(shown.number(gain.mean, sign=True), gain.mean, counted(gain.seeds, "seed")) if gain else Cell()
        for gain in gains
    ]
    if any(gains):
        meaning = "score less that of the default settings, with the same seeds"
        yield Column("gained", shown.unit, "descending", meaning), cells


def _seeds(row: Row) -> Cell:
    count, low = len(row.seeds), len({*row.collapsed, *row.diverged})
    told = [f"collapse ≤ {collapse_rate_limit(count, low):.0%}"] if count > 1 else []
    return Cell(str(count), count, "\n".join([*_low_seeds(row), *told])) if count else Cell()


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
        told = answer(group)
        console.print(Lines(Text(group.title, "italic"), Text(told.headline, "bold"), *map(Text, told.details), Text()))
        _print_columns(group, console)
        console.print(Lines(*map(Text, (*_cut(group, MOST_PRINTED), *notes(group), ""))))
    for line in _left_out(comparison):
        console.print(Text(line), soft_wrap=True)


def _left_out(comparison: Comparison) -> Iterator[str]:
    yield from comparison.warnings
    yield from _first([_told(failure) for failure in comparison.failures], MOST_NOTES, "comparison.json")
    yield from _first([f"left out: {reason}" for reason in comparison.unreadable], MOST_NOTES, "comparison.json")


def _told(failure: Failure) -> str:
    return f"{failure.count} x {failure.cause} ({some(failure.methods)}); see {failure.location}"


def _first(lines: Sequence[str], most: int, rest_is_in: str) -> Iterator[str]:
    yield from lines[:most]
    if len(lines) > most:
        yield f"... and {len(lines) - most:,} more, in {rest_is_in}."


def _print_columns(group: Group, console: Console) -> None:
    titles, rows = readable(group, MOST_PRINTED)
    print_table(console, map(_text_column, range(len(titles)), titles, zip(*rows, strict=True)), "table.md")


def _text_column(number: int, title: str, cells: Sequence[str]) -> TextColumn:
    word = title.partition(",")[0]
    importance = MOST_IMPORTANT if number == SCORE_COLUMN else IMPORTANCE.get(word, OF_COSTS)
    return TextColumn(title, cells, importance, word in LEFT_ALIGNED, word == "method")


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
        unit = unit.replace("percentage points", "points")  # short, as room is scarce
        titles.append(f"{column.short or column.title}{', ' * bool(unit)}{unit}")
        notes = [cell.note.replace(NARROW_SPACE, " ") for cell in cells]
        lines = notes if column.title == EACH_SEED else [note.replace("\n", ", ") for note in notes]
        texts.append(lines if column.title in (EACH_SEED, TRIALS_ENDED) else [cell.text for cell in cells])
        if number == 0 and group.score_name:
            titles.append("95% interval")
            texts.append(notes)
    titles.append("best settings")
    texts.append([format_settings(row.best, short=True) for row in rows])
    return titles, [list(cells) for cells in zip(*texts, strict=True)]


def notes(group: Group) -> Iterator[str]:
    """Sentences under a table: seeds that collapsed, and warnings."""
    is_open = [row.name for row in group.rows if row.place is not None and _is_open(row)]
    if len(is_open) > MOST_NAMES:
        yield f"Not told apart from the best: {some(is_open)}."
    low = [f"{row.name}, seeds that {'; '.join(_low_seeds(row))}." for row in group.rows if [*_low_seeds(row)]]
    yield from _first(low, MOST_NOTES, "table.csv")
    yield from group.warnings
    yield from _first([warning for row in group.rows for warning in row.warnings], MOST_NOTES, "table.csv")
    yield from _first([f"{row.name}: {edge}" for row in group.rows for edge in row.edges], MOST_NOTES, "table.csv")


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
    record |= {"seeds": len(row.seeds), "seed_scores": " ".join(map(str, row.seed_scores))}
    record |= {"seeds_diverged": len(row.diverged), "seeds_collapsed": len(row.collapsed)}
    record |= {"verdict": group.verdict and str(group.verdict.kind), "is_equal": row.is_equal}
    record |= {"separated_from_best": row.separated_from_best, "objective": row.objective}
    record |= _with_interval("default_score", row.default_score)
    record |= {"default_gain": row.default_gain.mean if row.default_gain else None}
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
        rule = [":--" if title.partition(",")[0] in LEFT_ALIGNED else "--:" for title in titles]
        texts = ([cell.replace("|", "\\|").replace("\n", " ") for cell in cells] for cells in (titles, rule, *rows))
        lines = [f"| {' | '.join(cells)} |" for cells in texts]
        told = [f"- {note}" for note in (*_cut(group, MOST_WRITTEN), *notes(group))]
        found = answer(group)
        above = [f"## {group.title}", "", f"**{found.headline}**", "", " ".join(found.details), ""]
        parts.append("\n".join([*above, *lines, "", *told]).rstrip())
    return "\n\n".join([*parts, *_left_out(comparison)]) + "\n"
