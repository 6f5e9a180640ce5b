"""Which of two rows is better: on simulated sweeps whose truth is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

from peftsweep.statistics.pairs import (
    MCNEMAR,
    PAIRED_T,
    TWO_WAY,
    WELCH,
    Floats,
    compare_pairs,
    find_gap,
    is_best,
    mcnemar_p_value,
)

SIMULATED = 3000


def simulate(
    seeds: tuple[int, int], items: int, *, of_seeds: tuple[float, float], gap: float = 0.0, count: int = SIMULATED
) -> tuple[Floats, Floats]:
    """Two methods on the same items, `gap` apart in the long run. Items are hard or easy for both, a little more so
    for one or the other; each seed of a method is better or worse on all items."""
    draw = np.random.default_rng(0)
    common = draw.uniform(-0.3, 0.3, (count, 1, items))
    sides = []
    for number, spread, shift in zip(seeds, of_seeds, (gap / 2, -gap / 2), strict=True):
        own = draw.uniform(-0.1, 0.1, (count, 1, items))
        chance = 0.5 + shift + common + own + draw.normal(0, spread, (count, number, 1))
        sides.append((draw.random((count, number, items)) < chance).astype(float))
    return sides[0], sides[1]


CASES = [
    ((3, 3), 300, (0.02, 0.02)),
    ((3, 3), 300, (0.05, 0.05)),
    ((3, 3), 300, (0.05, 0.0)),
    ((5, 5), 300, (0.02, 0.02)),
    ((10, 10), 100, (0.03, 0.03)),
    ((1, 3), 300, (0.02, 0.02)),
]


@pytest.mark.parametrize(("seeds", "items", "of_seeds"), CASES)
def test_equal_methods_are_told_apart_in_at_most_one_case_of_twenty(
    seeds: tuple[int, int], items: int, of_seeds: tuple[float, float]
) -> None:
    assert np.mean(find_gap(*simulate(seeds, items, of_seeds=of_seeds)).p_value() < 0.05) <= 0.05


@pytest.mark.parametrize(("seeds", "items", "of_seeds"), [CASES[1], CASES[3], CASES[4], CASES[5]])
def test_the_interval_of_a_gap_holds_the_truth_as_often_as_it_says(
    seeds: tuple[int, int], items: int, of_seeds: tuple[float, float]
) -> None:
    gap = find_gap(*simulate(seeds, items, of_seeds=of_seeds, gap=0.1))
    assert 0.93 <= np.mean(np.abs(gap.difference - 0.1) <= gap.half_width()) <= 0.97


def test_equal_adapters_of_one_seed_are_told_apart_as_seldom() -> None:
    first, second = simulate((1, 1), 300, of_seeds=(0.0, 0.0))
    p_values = [mcnemar_p_value(one[0], other[0]) for one, other in zip(first, second, strict=True)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.05


def test_a_group_of_equal_methods_has_a_false_claim_in_at_most_one_case_of_twenty() -> None:
    """Holm's correction claims nothing unless the smallest of the p-values, times their number, is below 5%."""
    draw = np.random.default_rng(0)
    common = draw.uniform(-0.3, 0.3, (1000, 1, 100))
    chances = [0.5 + common + draw.normal(0, 0.03, (1000, 3, 1)) for _ in range(4)]
    scores = [(draw.random((1000, 3, 100)) < chance).astype(float) for chance in chances]
    p_values = [find_gap(one, other).p_value() for one, other in itertools.combinations(scores, 2)]
    assert np.mean(np.min(p_values, axis=0) * 6 < 0.05) <= 0.05


def claims_among_equals(compared: int, *, is_best_alone: bool) -> float:
    """Of 300 simulated groups of 400 equal adapters, the share in which a false claim is made of the best ones."""
    draw = np.random.default_rng(0)
    claims = 0
    for _ in range(300):
        scores = (draw.random((400, 1, 60)) < draw.uniform(0.3, 0.7, 60)).astype(float)
        best = scores[np.argsort(-scores.mean(axis=(1, 2)))][:compared]
        first, second = (
            (np.zeros(compared - 1, int), np.arange(1, compared)) if is_best_alone else np.triu_indices(compared, 1)
        )
        claims += find_gap(best[first], best[second]).p_value().min() * len(first) < 0.05
    return claims / 300


def test_the_best_of_many_equals_are_told_apart_in_at_most_one_case_of_twenty() -> None:
    """Rows that were chosen for their score lie closer together than as many that were not."""
    assert claims_among_equals(50, is_best_alone=False) <= 0.05


def test_the_best_of_many_against_each_of_them_would_claim_too_much() -> None:
    """Why thousands of rows are not each compared with the best."""
    assert claims_among_equals(400, is_best_alone=True) > 0.5


def test_a_real_gap_is_found() -> None:
    first, second = simulate((3, 3), 300, of_seeds=(0.02, 0.02), gap=0.25, count=300)
    assert np.mean(find_gap(first, second).p_value() < 0.05) > 0.9


def test_a_bootstrap_of_three_seeds_would_claim_too_much() -> None:
    """Why seeds are not drawn anew here."""
    first, second = simulate((3, 3), 300, of_seeds=(0.05, 0.05), count=300)
    draw = np.random.default_rng(0)
    claims = []
    for one, other in zip(first.mean(axis=-1), second.mean(axis=-1), strict=True):
        gaps = draw.choice(one, (500, 3)).mean(axis=1) - draw.choice(other, (500, 3)).mean(axis=1)
        low, high = np.quantile(gaps, [0.025, 0.975])
        claims.append(low > 0 or high < 0)
    assert np.mean(claims) > 0.1


def test_one_seed_each_of_right_and_wrong_is_mcnemars_exact_test() -> None:
    first, second = np.array([[1.0] * 9 + [0] + [1] * 5]), np.array([[0.0] * 9 + [1] + [1] * 5])
    (pair,) = compare_pairs({"a": first, "b": second})
    assert (pair.test, pair.p_value) == (MCNEMAR, pytest.approx(22 / 1024))  # 2 (1 + 10) / 2**10
    assert mcnemar_p_value(first[0], second[0]) == pair.p_value


def test_one_seed_each_of_other_scores_is_a_paired_t_test() -> None:
    first, second = np.array([[0.5, 0.6, 0.9, 0.4]]), np.array([[0.4, 0.6, 0.7, 0.1]])
    (pair,) = compare_pairs({"a": first, "b": second})
    assert (pair.test, pair.p_value) == (PAIRED_T, pytest.approx(ttest_rel(first[0], second[0]).pvalue))


def test_several_seeds_are_compared_over_items_and_seeds() -> None:
    first, second = simulate((3, 2), 50, of_seeds=(0.05, 0.05), count=1)
    (pair,) = compare_pairs({"a": first[0], "b": second[0]})
    assert pair.test == TWO_WAY
    assert pair.difference == pytest.approx(first.mean() - second.mean())
    assert pair.low is not None
    assert pair.high is not None
    assert pair.low < pair.difference < pair.high


def test_p_values_are_corrected_for_the_number_of_pairs() -> None:
    draw = np.random.default_rng(0)
    scores = {name: (draw.random((2, 40)) < 0.5).astype(float) for name in "abcd"}
    pairs = compare_pairs(scores)
    smallest = min(pairs, key=lambda pair: pair.p_value)
    assert len(pairs) == 6
    assert smallest.adjusted_p_value == pytest.approx(min(1.0, 6 * smallest.p_value))
    assert all(pair.adjusted_p_value >= pair.p_value for pair in pairs)


def test_rows_that_answer_all_alike_are_one() -> None:
    same = np.array([[1.0, 0, 1]])
    (pair,) = compare_pairs({"a": same, "b": same})
    assert (pair.p_value, pair.is_separated, pair.low, pair.detectable) == (1.0, False, None, None)


def test_rows_with_other_items_are_not_compared() -> None:
    assert compare_pairs({"a": np.ones((1, 3)), "b": np.zeros((1, 4))}) == ()


def test_means_of_seeds_without_items_are_compared_by_welchs_test() -> None:
    first, second = np.array([1.31, 1.29, 1.36]), np.array([1.42, 1.40, 1.44, 1.38])
    (pair,) = compare_pairs({"a": first, "b": second})
    expected = ttest_ind(first, second, equal_var=False)
    interval = expected.confidence_interval()
    assert (pair.test, pair.seeds) == (WELCH, (3, 4))
    assert (pair.p_value, pair.low, pair.high) == pytest.approx((expected.pvalue, interval.low, interval.high))


def test_single_means_are_not_compared() -> None:
    assert compare_pairs({"a": np.array([1.3]), "b": np.array([1.4])}) == ()


def test_means_that_do_not_vary_prove_nothing() -> None:
    (pair,) = compare_pairs({"a": np.full(3, 0.9), "b": np.full(3, 0.8)})
    assert pair.p_value == 1.0


def test_single_seeds_are_about_two_adapters() -> None:
    scores = {"a": np.ones((1, 30)), "b": np.zeros((1, 30)), "c": np.eye(30)[:2]}
    pairs = compare_pairs(scores)
    assert [pair.is_about_adapters for pair in pairs] == [True, False, False]
    assert not is_best("a", ["b", "c"], pairs)


def test_adapters_of_equal_methods_are_often_told_apart() -> None:
    """Why nobody is best on one seed."""
    first, second = simulate((1, 1), 1319, of_seeds=(0.03, 0.03), count=300)
    p_values = [mcnemar_p_value(one[0], other[0]) for one, other in zip(first, second, strict=True)]
    assert np.mean(np.array(p_values) < 0.05) > 0.13


def test_the_best_is_ahead_of_each_other_row_without_correction() -> None:
    scores = {
        "a": np.array([0.80, 0.81, 0.82]),
        "b": np.array([0.775, 0.785, 0.795]),
        "c": np.array([0.77, 0.79, 0.78]),
    }
    pairs = compare_pairs(scores)
    closest = next(pair for pair in pairs if (pair.first, pair.second) == ("a", "b"))
    assert closest.p_value < 0.05 < closest.adjusted_p_value
    assert is_best("a", ["b", "c"], pairs)
    assert not is_best("a", ["b", "c", "d"], pairs)
    assert not is_best("b", ["a", "c"], pairs)
    assert not is_best("a", [], pairs)


def test_equal_methods_have_a_best_in_at_most_one_case_of_twenty() -> None:
    """Of six, the one with the highest mean, against each of the others, of spreads that differ."""
    draw = np.random.default_rng(0)
    claims = 0
    for _ in range(400):
        means = draw.normal(0.5, [[0.01], [0.01], [0.02], [0.02], [0.05], [0.05]], (6, 3))
        scores = {str(number): row for number, row in enumerate(means)}
        best, *others = sorted(scores, key=lambda name: -scores[name].mean())
        claims += all(find_gap(scores[best][:, None], scores[other][:, None]).p_value() < 0.05 for other in others)
    assert claims / 400 <= 0.05


def test_a_gap_that_is_said_to_be_found_is_found_four_times_in_five() -> None:
    gap = find_gap(*simulate((5, 5), 300, of_seeds=(0.03, 0.03)))
    wanted = float(np.median(gap.detectable()))
    found = find_gap(*simulate((5, 5), 300, of_seeds=(0.03, 0.03), gap=wanted)).p_value() < 0.05
    assert 0.74 <= np.mean(found) <= 0.86
