"""The score of a method: read by test item, and its mean over seeds and items with a 95% interval.

The sweep's own table and the report both ask here, so that they never tell different numbers.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_FREEDOM = 1e6  # as good as a normal distribution
Floats = npt.NDArray[np.float64]

SCORES = ("test/accuracy", "test/score", "test/exact_match", "test/dino_similarity")  # the first measured is compared
SHARES = ("test/accuracy", "test/exact_match")  # lie between 0 and 1
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
    low, high = two_way_interval(items)
    return (max(0.0, low), min(1.0, high)) if key in SHARES else (low, high)


def two_way_interval(items: Sequence[Sequence[float]] | Floats) -> tuple[float, float]:
    """95% interval of the mean of (seeds, test items), both drawn at random: Student's, with the degrees of freedom of
    Satterthwaite. With few seeds that disagree it is wide, as it should be."""
    from scipy.special import stdtrit

    scores = np.asarray(items, dtype=float)
    parts = variance_parts(scores)
    mean, variance = float(scores.mean()), float(parts.of_mean)
    if variance == 0:
        return mean, mean
    half = float(stdtrit(parts.freedom, 0.975)) * math.sqrt(variance)
    return mean - half, mean + half


def degrees_of_freedom(variance: Floats, lost: Floats, least: float = 1.0) -> Floats:
    """Satterthwaite's: the squared variance over `lost`, the sum of its parts' squares over their own."""
    freedom = np.divide(variance**2, lost, out=np.full_like(lost, MOST_FREEDOM), where=lost > 0)
    return np.clip(freedom, least, MOST_FREEDOM)


@dataclass(frozen=True)
class VarianceParts:
    """Estimated parts of the variance of a mean over (seeds, test items); arrays of whatever was stacked before them.

    of_items and of_seeds each hold the noise once, that of one seed's answer to one item.
    """

    of_items: Floats
    of_seeds: Floats
    of_noise: Floats
    seeds: int
    items: int

    @property
    def of_mean(self) -> Floats:
        """Noise is counted once. Of seeds that differ less than noise alone would make them, nothing is left."""
        return self.of_items + np.maximum(self.of_seeds - self.of_noise, 0.0)

    @property
    def freedom(self) -> Floats:
        """Degrees of freedom after Satterthwaite (1946); no fewer than the smaller part's, as noise is subtracted."""
        lost = self.of_items**2 / (self.items - 1) + self.lost_freedom
        return degrees_of_freedom(self.of_mean, lost, least=min(max(1, self.seeds - 1), self.items - 1))

    @property
    def lost_freedom(self) -> Floats:
        """What the seeds' part adds to the denominator of Satterthwaite's formula."""
        if self.seeds < 2:
            return np.zeros_like(self.of_items)
        return self.of_seeds**2 / (self.seeds - 1) + self.of_noise**2 / ((self.seeds - 1) * (self.items - 1))


def variance_parts(scores: Floats) -> VarianceParts:
    """scores: (..., seeds, test items), at least 2 items. A single seed tells nothing of seeds: that part is 0 then."""
    seeds, items = scores.shape[-2:]
    of_items = scores.mean(axis=-2).var(axis=-1, ddof=1) / items
    if seeds < 2:
        return VarianceParts(of_items, np.zeros_like(of_items), np.zeros_like(of_items), seeds, items)
    of_seeds = scores.mean(axis=-1).var(axis=-1, ddof=1) / seeds
    rest = scores - scores.mean(axis=-2, keepdims=True) - scores.mean(axis=-1, keepdims=True)
    rest = rest + scores.mean(axis=(-2, -1), keepdims=True)
    of_noise = (rest**2).sum(axis=(-2, -1)) / ((seeds - 1) * (items - 1)) / (seeds * items)
    return VarianceParts(of_items, of_seeds, of_noise, seeds, items)
