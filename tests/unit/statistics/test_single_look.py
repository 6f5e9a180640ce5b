"""One look at all seeds that there are, however many each method has."""

from __future__ import annotations

import numpy as np
import pytest

from peftsweep.statistics.intervals import Floats
from peftsweep.statistics.sequential import Kind, judge, judge_once

MARGIN = 0.02


def drawn(mean: float, seeds: int, start: int = 0) -> Floats:
    """Means of seeds that differ by about a point."""
    return mean + 0.01 * np.random.default_rng(start).standard_normal(seeds)


def test_it_uses_all_seeds_of_each_method() -> None:
    found = judge_once({"a": drawn(0.9, 4), "b": np.array([0.2, 0.21, 0.99, 0.98, 0.99, 0.99])}, margin=MARGIN)
    assert found.bounds["b"].difference == pytest.approx(
        drawn(0.9, 4).mean() - np.mean([0.2, 0.21, 0.99, 0.98, 0.99, 0.99])
    )


def test_it_says_what_a_sequential_rule_with_one_look_says() -> None:
    scores = {"a": drawn(0.9, 5), "b": drawn(0.7, 5, 1), "c": drawn(0.895, 5, 2)}
    once, one_look = judge_once(scores, margin=MARGIN), judge(scores, margin=MARGIN, looks=(5,))
    assert (once.kind, once.leader, once.contenders, once.bounds) == (
        one_look.kind,
        one_look.leader,
        one_look.contenders,
        one_look.bounds,
    )


def test_without_a_winner_only_those_are_behind_that_holm_tells_apart() -> None:
    spread = 0.01 * np.array([-1.0, 0.0, 1.0])
    scores = {"a": 0.9 + spread, "b": 0.899 + spread, "c": 0.87 + spread, "d": 0.5 + spread}
    found = judge_once(scores, margin=0.001)
    assert found.kind is Kind.UNDECIDED
    assert found.bounds["c"].p_value < 0.05
    assert (found.contenders, [*found.dropped]) == (("a", "b", "c"), ["d"])


def test_it_always_ends() -> None:
    assert judge_once({"a": drawn(0.9, 2), "b": drawn(0.9, 9, 1)}, margin=0.0).kind is Kind.UNDECIDED


def test_a_single_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="2 seeds at least: a 3, b 1"):
        judge_once({"a": drawn(0.9, 3), "b": drawn(0.5, 1)}, margin=MARGIN)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_of_equal_means_the_leader_is_the_same_in_whatever_order_methods_are_told(names: tuple[str, str]) -> None:
    assert judge_once({name: drawn(0.9, 4) for name in names}, margin=MARGIN).leader == "a"
