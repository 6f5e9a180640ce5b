"""Which rows no other beats in every metric asked for, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peftsweep.errors import ConfigError, Problem
from peftsweep.records.jobs import OWN, Job, Loaded
from peftsweep.records.metrics import resolve, sign
from peftsweep.report.analysis.comparison import Estimate, Group, Row
from peftsweep.report.analysis.pairs import Floats, as_matrix

DRAWS = 1000
MOST_METRICS = 3
MOST_DRAWN = 50  # rows: every draw compares each with each, and what many rows beat is on the frontier in none
MOST_DOMINATORS = 50  # named, of one row


@dataclass(frozen=True)
class Point:
    """One row in the plane of the metrics. share: of the bootstrap draws, in which it is on the frontier; None for
    published results, which stand beside it, and for what lies too far behind. dominated_by: rows that are at least as
    good in all and better in one, the best of them."""

    name: str
    origin: str
    values: dict[str, Estimate]
    on_frontier: bool
    share: float | None
    dominated_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pareto:
    """metrics: keys of METRICS, as asked. missing: rows that lack one of them. points: best in the first metric
    first."""

    metrics: tuple[str, ...]
    points: tuple[Point, ...]
    missing: tuple[str, ...] = ()


def find_frontier(group: Group, loaded: Loaded, words: Sequence[str] = ("score", "memory"), seed: int = 0) -> Pareto:
    """The frontier of two or three metrics, by key or short name.

    Raises:
        ConfigError: an unknown metric, one that has no better side, or another number of them.
        DataError: no row of the group measured one.
    """
    rows = [row for row in group.rows if row.estimates]
    metrics = _metrics(rows, words)
    complete = [row for row in rows if all(key in row.estimates for key in metrics)]
    own = [row for row in complete if row.origin == OWN]
    means = np.array([[_signed(row.estimates[key].mean, key) for key in metrics] for row in own])
    counts, beaten_by = _beaten(means)
    near = sorted(sorted(range(len(own)), key=counts.__getitem__)[:MOST_DRAWN])
    jobs = {job.location: job for job in loaded.jobs}
    shares = dict(zip(near, _shares([own[i] for i in near], metrics, group.score_name, jobs, seed), strict=True))
    points = [
        _point(row, metrics, float(shares[i]) if i in shares else None, [own[j].name for j in beaten_by[i]])
        for i, row in enumerate(own)
    ]
    points += [_point(row, metrics) for row in complete if row.origin != OWN]
    points.sort(key=lambda point: -_signed(point.values[metrics[0]].mean, metrics[0]))
    missing = tuple(row.name for row in group.rows if not all(key in row.estimates for key in metrics))
    return Pareto(metrics, tuple(points), missing)


def _metrics(rows: Sequence[Row], words: Sequence[str]) -> tuple[str, ...]:
    measured = [row.estimates.keys() for row in rows if row.origin == OWN] or [row.estimates.keys() for row in rows]
    metrics = tuple(dict.fromkeys(resolve(word, measured) for word in words))
    if not 2 <= len(metrics) <= MOST_METRICS:
        raise ConfigError(Problem("a frontier needs two or three different metrics", " ".join(words), "x, y, z"))
    for key in metrics:
        sign(key)
    return metrics


def _signed(value: float, key: str) -> float:
    return sign(key) * value


def _point(row: Row, metrics: Sequence[str], share: float | None = None, dominated_by: Sequence[str] = ()) -> Point:
    values = {key: row.estimates[key] for key in metrics}
    return Point(row.name, row.origin, values, row.origin == OWN and not dominated_by, share, tuple(dominated_by))


def _beaten(means: Floats) -> tuple[list[int], list[list[int]]]:
    """How many rows beat each row, and the first of those. means: (rows, metrics), higher is better. A row at a time:
    a table of all pairs of 10,000 rows would not fit into memory."""
    counts, first = [], []
    columns = list(np.ascontiguousarray(means.T))
    for row in means:
        as_good = [column >= value for column, value in zip(columns, row, strict=True)]
        others = np.flatnonzero(np.logical_and.reduce(as_good))
        others = others[(means[others] > row).any(axis=-1)]
        counts.append(len(others))
        first.append(others[:MOST_DOMINATORS].tolist())
    return counts, first


def _beats(values: Floats) -> np.ndarray:
    """values: (draws, rows, metrics), higher is better; answers (draws, rows, rows): whether the first beats the
    second."""
    first, second = values[:, :, None, :], values[:, None, :, :]
    return np.asarray((first >= second).all(axis=-1) & (first > second).any(axis=-1))


def _shares(
    rows: Sequence[Row], metrics: Sequence[str], score: str | None, jobs: Mapping[str, Job], seed: int
) -> Floats:
    """Of each row, the share of draws in which nothing beats it."""
    random = np.random.default_rng(seed)
    item_weights: dict[int, Floats] = {}
    drawn = []
    for row in rows:
        scored = [jobs[location] for location in row.locations]
        weights = _seed_weights(len(scored), random)
        drawn.append(np.stack([_draw(scored, key, key == score, weights, item_weights, random) for key in metrics], -1))
    values = np.stack(drawn, axis=1) if drawn else np.zeros((DRAWS, 0, len(metrics)))
    return np.asarray((~_beats(values).any(axis=1)).mean(axis=0))


def _seed_weights(seeds: int, random: np.random.Generator) -> Floats:
    """(draws, seeds). One seed less is drawn than there are (Rao and Wu, 1988): so the variance of a mean of few seeds
    comes out right. A single seed stays."""
    count = max(1, seeds - 1)
    return random.multinomial(count, [1 / seeds] * seeds, size=DRAWS) / count


def _draw(
    scored: Sequence[Job],
    key: str,
    is_score: bool,
    weights: Floats,
    item_weights: dict[int, Floats],
    random: np.random.Generator,
) -> Floats:
    """(draws,) of one metric, signed. Test items are drawn once for all rows, as all were asked the same."""
    items = as_matrix([job.item_scores for job in scored]) if is_score else None
    if items is None:
        values = np.array([job.result.metrics.get(key, np.nan) for job in scored])
        means = np.where(np.isnan(values), np.nanmean(values), values)
        return np.asarray(sign(key) * (weights @ means))
    count = items.shape[1]
    if count not in item_weights:
        item_weights[count] = random.multinomial(count, [1 / count] * count, size=DRAWS) / count
    return np.asarray(sign(key) * (weights * (item_weights[count] @ items.T)).sum(axis=1))
