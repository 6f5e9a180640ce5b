"""How often the interval of a score holds the truth, of seeds that are not as a textbook would have them."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_truths import draw_answers, draw_seeds

from peftsweep.statistics.intervals import two_way_interval


def coverage(kind: str, seeds: int, items: int, count: int) -> float:
    random = np.random.default_rng(1)
    shares, truth = draw_seeds(kind, count, seeds, random)
    ends = [two_way_interval(draw_answers(one[None], items, random)[0]) for one in shares]
    return float(np.mean([low <= truth <= high for low, high in ends]))


CASES = [("normal", 0.93, 0.99), ("skewed", 0.9, 0.98), ("near one", 0.92, 0.99), ("a third collapses", 0.55, 0.78)]


@pytest.mark.parametrize(("kind", "least", "most"), CASES)
def test_three_seeds_hold_the_truth_as_often_as_is_said(kind: str, least: float, most: float) -> None:
    assert least <= coverage(kind, 3, 300, 150) <= most


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "items"), [(2, 300), (3, 1319), (7, 300)])
@pytest.mark.parametrize("kind", ["normal", "skewed", "near one"])
def test_seeds_that_do_not_collapse_have_intervals_that_hold(kind: str, seeds: int, items: int) -> None:
    assert coverage(kind, seeds, items, 250) >= 0.88


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "seeds", "least", "most"),
    [
        ("a tenth collapses", 3, 0.2, 0.6),
        ("a tenth collapses", 7, 0.4, 0.6),
        ("a third collapses", 7, 0.9, 0.97),
    ],
)
def test_collapses_that_no_seed_shows_are_held_by_no_interval(kind: str, seeds: int, least: float, most: float) -> None:
    assert least <= coverage(kind, seeds, 300, 250) <= most
