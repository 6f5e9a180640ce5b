"""The test items that a job left, and the score of a method over seeds and items.

The sweep's own table and the report both ask here, so that they never tell different numbers.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftsweep.records.metrics import within_ends
from peftsweep.statistics.intervals import two_way_interval

ITEM_SCORES = ("correct", "score", "similarity")  # what a line of predictions.jsonl calls its score


def read_item_scores(path: Path) -> list[float]:
    """One for each test item of a predictions.jsonl, in order; none if there is no such file.

    Pictures of the same photo's prompt are one item, and count with their mean.

    Raises:
        ValueError: a line is no JSON object, or its score is no number.
    """
    if not path.exists():
        return []
    scores: dict[Any, list[float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"line {number + 1} holds no object")
        found = next((row[key] for key in ITEM_SCORES if key in row), 0.0)
        scores.setdefault(row.get("photo", number), []).append(float(found))
    return [statistics.fmean(of_item) for of_item in scores.values()]


def score_interval(
    items: Sequence[Sequence[float]], key: str, of_job: tuple[float, float] | None
) -> tuple[float, float] | None:
    """95% interval of the mean score over fresh seeds and fresh test items.

    items: (seeds, test items); key: of METRICS; of_job: the interval of the single job, over items alone, that one
    seed has. None where seeds were not asked the same items, or the items are not known.
    """
    if len(items) == 1:
        return of_job
    if len({len(scores) for scores in items}) != 1 or len(items[0]) < 2:
        return None
    return within_ends(*two_way_interval(items), key)
