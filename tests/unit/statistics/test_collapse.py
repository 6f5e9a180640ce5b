"""Which seeds collapsed, and how many may."""

from __future__ import annotations

import numpy as np
import pytest

from peftsweep.statistics.collapse import collapse_rate_limit, collapsed_seeds


@pytest.mark.parametrize(
    ("means", "collapsed"),
    [
        ([0.70, 0.71, 0.02], [False, False, True]),
        ([0.70, 0.01, 0.02], [False, True, True]),  # most of them
        ([0.70, 0.40, 0.69], [False, False, False]),  # poor, but it learned
        ([0.05, 0.02, 0.04], [False, False, False]),  # less than half, but test items alone may do that
        ([0.0, 0.0], [False, False]),  # nothing was learned by any seed
        ([-1.3, -1.4, -9.0], [False, False, False]),  # losses
        ([], []),
    ],
)
def test_a_seed_collapsed_if_it_lost_half_of_its_best_sibling(means: list[float], collapsed: list[bool]) -> None:
    assert collapsed_seeds(np.array(means), noise=0.03).tolist() == collapsed


def test_chance_is_where_a_score_begins() -> None:
    means = np.array([0.95, 0.93, 0.52])
    assert not collapsed_seeds(means, noise=0.02).any()
    assert collapsed_seeds(means, noise=0.02, floor=0.5).tolist() == [False, False, True]


@pytest.mark.parametrize("seeds", [1, 3, 7, 14])
def test_after_seeds_without_a_collapse_the_limit_is_the_twentieth_root(seeds: int) -> None:
    assert collapse_rate_limit(seeds) == pytest.approx(1 - 0.05 ** (1 / seeds))


def test_the_limit_with_collapses_is_exact() -> None:
    from scipy.stats import binom

    assert binom.cdf(2, 10, collapse_rate_limit(10, 2)) == pytest.approx(0.05)
    assert collapse_rate_limit(3, 3) == 1.0
