"""Which test items one method alone gets right, with what each answered: what a mean score can't show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from peftsweep.errors import DataError
from peftsweep.records.files import BASE_PREDICTIONS_FILE, PREDICTIONS_FILE
from peftsweep.records.jobs import REFERENCE, Job
from peftsweep.report.analysis.comparison import Row
from peftsweep.statistics.intervals import Floats

BASE = "base"
MOST_SHOWN = 8  # items
MOST_LETTERS = 180  # of a question or an answer; the end of an answer is what is judged
ANSWERS = ("parsed", "predicted", "generated")  # what a line of predictions.jsonl calls its answer, the first that is


@dataclass(frozen=True)
class Count:
    """name: of a row. alone: items that it solves and no other row does; missed: that every other one solves."""

    name: str
    alone: int
    missed: int


@dataclass(frozen=True)
class Shown:
    """An item that the row `by` alone solves. answers: for each column, its words and whether they are right."""

    by: str
    asked: str
    target: str
    answers: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Solved:
    """columns: of the answers, the base model first where it was asked. by_all, by_none: items that every row solves,
    or none. apart_seeds, apart_methods: share of the items of which two seeds of one row, and two rows, one is right
    and the other wrong, on average; None where no row has two seeds."""

    items: int
    by_all: int
    by_none: int
    counts: tuple[Count, ...]
    columns: tuple[str, ...]
    shown: tuple[Shown, ...]
    apart_seeds: float | None
    apart_methods: float


def find_solved(rows: Sequence[Row], jobs: Sequence[Job]) -> Solved | None:
    """Of rows that were asked the same items, each right or wrong; None where fewer than two were. A row solves what
    most of its seeds get right."""
    by_location = {job.location: job for job in jobs}
    found = {row.name: _right(row, by_location) for row in rows if row.origin != REFERENCE and row.place is not None}
    known = {name: right for name, right in found.items() if right is not None}
    counts = {right.shape[1] for right in known.values()}
    if len(known) < 2 or len(counts) != 1:
        return None
    names = tuple(known)
    solves = np.stack([right.mean(axis=0) > 0.5 for right in known.values()])
    together = solves.sum(axis=0)
    alone, missed = solves & (together == 1), ~solves & (together == len(names) - 1)
    told = tuple(Count(*each) for each in zip(names, alone.sum(1).tolist(), missed.sum(1).tolist(), strict=True))
    by_all, by_none = int((together == len(names)).sum()), int((together == 0).sum())
    firsts = {row.name: by_location[row.locations[0]] for row in rows if row.name in known}
    columns, shown = _examples(firsts, dict(zip(names, alone, strict=True)))
    apart_seeds, apart_methods = _apart(list(known.values()))
    return Solved(counts.pop(), by_all, by_none, told, columns, shown, apart_seeds, apart_methods)


def _right(row: Row, by_location: Mapping[str, Job]) -> Floats | None:
    """(seeds, items), 1 where right; None where that isn't known of every seed, or scores lie between."""
    try:
        scores = [by_location[place].item_scores for place in row.locations if place in by_location]
    except DataError:
        return None
    if len(scores) < len(row.locations) or len({len(of_seed) for of_seed in scores}) != 1 or not scores[0]:
        return None
    right = np.array(scores)
    return right if np.isin(right, (0.0, 1.0)).all() else None


def _apart(known: Sequence[Floats]) -> tuple[float | None, float]:
    """How often one is right and the other wrong, (two seeds of a row, two rows with a seed each)."""
    shares = [right.mean(axis=0) for right in known]
    between = [float((a * (1 - b) + b * (1 - a)).mean()) for a, b in combinations(shares, 2)]
    within = []
    for right in known:
        seeds, wins = len(right), right.sum(axis=0)
        if seeds > 1:
            within.append(float((2 * wins * (seeds - wins) / (seeds * (seeds - 1))).mean()))
    return (float(np.mean(within)) if within else None), float(np.mean(between))


def _examples(firsts: Mapping[str, Job], alone: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], tuple[Shown, ...]]:
    """Items of each row by turns, as each row's first job answered them, where that job agrees with its row."""
    try:
        answered = {name: job.items(PREDICTIONS_FILE) for name, job in firsts.items()}
        asked_base = next((job for job in firsts.values() if job.base_scores()), None)
        base = asked_base.items(BASE_PREDICTIONS_FILE) if asked_base else []
        base_right = asked_base.base_scores() if asked_base else []
    except DataError:
        return (), ()
    if not all(answered.values()):  # of runs in MLflow whose files are gone
        return (), ()
    right = {name: job.item_scores for name, job in firsts.items()}
    if len(base) == len(next(iter(answered.values()))):
        answered, right = {BASE: base} | answered, {BASE: base_right} | right
    shown = list[Shown]()
    for name, number in _by_turns({name: np.flatnonzero(items).tolist() for name, items in alone.items()}):
        if len(shown) < MOST_SHOWN and [other for other in firsts if right[other][number]] == [name]:
            item = answered[name][number]
            answers = tuple((_answer(items[number]), right[of][number] > 0) for of, items in answered.items())
            shown.append(Shown(name, _asked(item), _end_of(str(item.get("target", ""))), answers))
    return tuple(answered), tuple(shown)


def _by_turns(numbers: Mapping[str, list[int]]) -> Iterator[tuple[str, int]]:
    for turn in range(max(map(len, numbers.values()))):
        yield from ((name, found[turn]) for name, found in numbers.items() if turn < len(found))


def _asked(item: Mapping[str, Any]) -> str:
    asked = " / ".join(str(item[key]) for key in ("prompt", "text", "pair") if item.get(key))
    picture = item.get("picture")
    asked = asked if len(asked) <= MOST_LETTERS else asked[: MOST_LETTERS - 1] + "…"
    return asked if picture is None else f"{asked} ({picture if isinstance(picture, str) else ', '.join(picture)})"


def _answer(item: Mapping[str, Any]) -> str:
    return _end_of(next((str(item[key]) for key in ANSWERS if item.get(key)), "").strip() or "(nothing)")


def _end_of(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else "…" + text[1 - MOST_LETTERS :]
