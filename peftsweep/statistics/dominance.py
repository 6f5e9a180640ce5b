"""Which points no other beats in every coordinate, and in how many bootstrap draws that holds. Higher is better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftsweep.statistics.intervals import Floats

DRAWS = 1000


def dominators(means: Floats, most: int) -> tuple[list[int], list[list[int]]]:
    """How many rows beat each row of (rows, metrics): at least as good in all and better in one; and the first `most`
    of those. A row at a time: a table of all pairs of 10,000 rows would not fit into memory."""
    counts, first = [], []
    columns = list(np.ascontiguousarray(means.T))
    for row in means:
        as_good = [column >= value for column, value in zip(columns, row, strict=True)]
        others = np.flatnonzero(np.logical_and.reduce(as_good))
        others = others[(means[others] > row).any(axis=-1)]
        counts.append(len(others))
        first.append(others[:most].tolist())
    return counts, first


def frontier_shares(rows: Sequence[Sequence[Floats]], seed: int = 0) -> Floats:
    """Of each row, the share of bootstrap draws in which no other row beats it.

    rows: for each row and metric its measurements, (seeds,) or (seeds, test items). Test items are drawn once for all
    rows, as all were asked the same.
    """
    if not rows:
        return np.zeros(0)
    random = np.random.default_rng(seed)
    item_weights: dict[int, Floats] = {}
    drawn = np.stack([_drawn_means(row, item_weights, random) for row in rows], axis=1)
    first, second = drawn[:, :, None, :], drawn[:, None, :, :]
    beats = np.asarray((first >= second).all(axis=-1) & (first > second).any(axis=-1))
    return np.asarray((~beats.any(axis=1)).mean(axis=0))


def _drawn_means(metrics: Sequence[Floats], item_weights: dict[int, Floats], random: np.random.Generator) -> Floats:
    """(draws, metrics). One seed less is drawn than there are (Rao and Wu, 1988): so the variance of a mean of few
    seeds comes out right. A single seed stays."""
    seeds = len(metrics[0])
    count = max(1, seeds - 1)
    weights = random.multinomial(count, [1 / seeds] * seeds, size=DRAWS) / count
    means = []
    for values in metrics:
        if values.ndim == 1:
            means.append(weights @ values)
            continue
        items = values.shape[1]
        if items not in item_weights:
            item_weights[items] = random.multinomial(items, [1 / items] * items, size=DRAWS) / items
        means.append((weights * (item_weights[items] @ values.T)).sum(axis=1))
    return np.stack(means, axis=-1)
