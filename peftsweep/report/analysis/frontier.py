"""Which rows no other beats in every metric asked for, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peftsweep.errors import ConfigError, Problem
from peftsweep.records.jobs import OWN, Job, Loaded, scores_of_seeds
from peftsweep.records.metrics import resolve, sign
from peftsweep.report.analysis.comparison import Estimate, Group, Row
from peftsweep.report.analysis.entries import items_of
from peftsweep.statistics.dominance import dominators, frontier_shares
from peftsweep.statistics.intervals import Floats

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
    mine = [row.estimates.keys() for row in rows if row.origin == OWN]
    metrics = tuple(dict.fromkeys(resolve(word, mine or [row.estimates.keys() for row in rows]) for word in words))
    if not 2 <= len(metrics) <= MOST_METRICS:
        raise ConfigError(Problem("a frontier needs two or three different metrics", " ".join(words), "x, y, z"))
    sides = [sign(key) for key in metrics]  # each has a better side
    complete = [row for row in rows if all(key in row.estimates for key in metrics)]
    own = [row for row in complete if row.origin == OWN]
    means = np.array([[row.estimates[key].mean for key in metrics] for row in own]).reshape(-1, len(sides)) * sides
    counts, beaten_by = dominators(means, MOST_DOMINATORS)
    near = sorted(sorted(range(len(own)), key=counts.__getitem__)[:MOST_DRAWN])
    jobs = {job.location: job for job in loaded.jobs}
    measured = [[_measurements(own[i], key, key == group.score_name, jobs) for key in metrics] for i in near]
    shares = dict(zip(near, frontier_shares(measured, seed).tolist(), strict=True))
    points = [_point(row, metrics, shares.get(i), [own[j].name for j in beaten_by[i]]) for i, row in enumerate(own)]
    points += [_point(row, metrics) for row in complete if row.origin != OWN]
    points.sort(key=lambda point: -sides[0] * point.values[metrics[0]].mean)
    missing = tuple(row.name for row in group.rows if not all(key in row.estimates for key in metrics))
    return Pareto(metrics, tuple(points), missing)


def _point(row: Row, metrics: Sequence[str], share: float | None = None, dominated_by: Sequence[str] = ()) -> Point:
    values = {key: row.estimates[key] for key in metrics}
    return Point(row.name, row.origin, values, row.origin == OWN and not dominated_by, share, tuple(dominated_by))


def _measurements(row: Row, key: str, is_score: bool, jobs: Mapping[str, Job]) -> Floats:
    """(seeds, test items) of the score where all items are known, (seeds,) of the rest; higher is better. A seed that
    did not measure it has the mean of the others; in the score, one that diverged has got nothing."""
    counted = [jobs[location] for location in row.locations]
    if is_score:
        items = scores_of_seeds(items_of(counted))
        return sign(key) * (items if items.size and len(items) == len(counted) else np.array(row.seed_scores))
    values = np.array([job.result.metrics.get(key, np.nan) for job in counted])
    return np.asarray(sign(key) * np.where(np.isnan(values), np.nanmean(values), values))
