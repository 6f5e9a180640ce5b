"""The sequential rule: what it asks for, what it says, and how often it is wrong where the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from simulated_truths import COLLAPSING, TRUTHS, Truth, confirm, is_wrong

from peftsweep.statistics.intervals import Floats
from peftsweep.statistics.sequential import FEWEST, LOOKS, Kind, default_margin, judge, look_levels, margin_of

MARGIN = 0.02
MANY = 150  # sweeps; tests/bench/bench_verdict.py simulates more


def drawn(mean: float, seeds: int = 14, spread: float = 0.005, start: int = 0) -> Floats:
    return mean + spread * np.random.default_rng(start).standard_normal(seeds)


CLEAR = {"a": drawn(0.9), "b": drawn(0.7, start=1), "c": drawn(0.6, start=2)}
ALIKE = {"a": drawn(0.9), "b": drawn(0.9, start=1), "c": drawn(0.6, start=2)}


def test_before_the_first_look_all_are_wanted() -> None:
    found = judge({name: rows[:0] for name, rows in CLEAR.items()}, margin=MARGIN)
    assert (found.kind, found.leader, found.wanted) == (Kind.OPEN, None, {"a": 3, "b": 3, "c": 3})


def test_who_is_clearly_ahead_alone_gets_more_seeds_to_show_that_none_collapses() -> None:
    found = judge({name: rows[:3] for name, rows in CLEAR.items()}, margin=MARGIN)
    assert (found.kind, found.leader, found.wanted) == (Kind.OPEN, "a", {"a": 5})


def test_the_best_is_told_with_seven_seeds_of_its_own_and_three_of_the_others() -> None:
    found, runs = confirm(CLEAR, MARGIN, LOOKS)
    assert (found.kind, found.contenders, found.dropped) == (Kind.BEST, ("a",), {"b": 3, "c": 3})
    assert (found.look, runs) == (FEWEST, FEWEST + 6)


@pytest.mark.parametrize(("gap", "p_value", "wanted"), [(0.01, 0.19, ["a", "b"]), (0.02, 0.03, ["a"])])
def test_who_seems_behind_rests_and_who_may_be_as_good_goes_on(gap: float, p_value: float, wanted: list[str]) -> None:
    seeds = np.array([0.892, 0.9, 0.908])
    found = judge({"a": seeds, "b": seeds - gap}, margin=MARGIN)
    assert found.bounds["b"].p_value == pytest.approx(p_value, abs=0.015)
    assert (found.contenders, list(found.wanted)) == (("a", "b"), wanted)


def test_those_at_rest_catch_up_before_anything_is_claimed() -> None:
    leader, rival = 0.9 + 0.008 * np.tile([-1.0, 1.0], 7), np.array([0.855, 0.865, 0.875])
    found = judge({"a": leader, "b": rival}, margin=0.0)
    assert found.level < found.bounds["b"].p_value < 0.05
    assert (found.kind, found.look, found.wanted) == (Kind.OPEN, FEWEST, {"b": FEWEST})


def test_those_within_the_margin_are_equal_and_named() -> None:
    found, _ = confirm(ALIKE, MARGIN, LOOKS)
    assert (found.kind, set(found.contenders), found.dropped) == (Kind.EQUAL, {"a", "b"}, {"c": 3})
    assert max(bound.within or 0.0 for bound in found.bounds.values()) <= MARGIN


def test_without_a_margin_nobody_is_equal() -> None:
    found, _ = confirm(ALIKE, 0.0, LOOKS)
    assert found.kind is Kind.UNDECIDED
    assert found.look == LOOKS[-1]


def test_the_verdict_is_the_same_whatever_seeds_came_later() -> None:
    for scores in (CLEAR, ALIKE):
        found, _ = confirm(scores, MARGIN, LOOKS)
        ended = {name: scores[name][: found.dropped.get(name, found.look)] for name in scores}
        assert judge(ended, margin=MARGIN) == found


def test_after_a_collapse_in_tuning_nothing_is_claimed_before_the_last_look() -> None:
    found, _ = confirm(CLEAR, MARGIN, LOOKS, is_collapse_known=True)
    assert (found.kind, found.look) == (Kind.BEST, LOOKS[-1])


def test_a_leader_that_collapses_later_calls_back_those_that_it_had_left_behind() -> None:
    failing = CLEAR["a"].copy()
    failing[3:5] = 0.0
    found = judge({"a": failing[:5], "b": CLEAR["b"][:3], "c": CLEAR["c"][:3]}, margin=MARGIN)
    assert (found.leader, found.collapsed) == ("b", {"a": 2})
    assert (found.kind, found.wanted) == (Kind.OPEN, {"b": 5})


def test_a_rival_whose_good_seeds_are_behind_is_behind_though_collapses_spread_its_mean() -> None:
    rival = CLEAR["b"].copy()
    rival[1] = 0.0
    found, _ = confirm({"a": CLEAR["a"], "b": rival}, MARGIN, LOOKS)
    assert (found.kind, found.leader, found.collapsed) == (Kind.BEST, "a", {"b": 1})
    assert found.bounds["b"].low < 0 < found.bounds["b"].high


def test_seeds_alike_in_all_items_make_methods_equal_and_not_one_best() -> None:
    found, _ = confirm({"a": np.ones((14, 300)), "b": np.ones((14, 300))}, default_margin(300), LOOKS)
    assert found.kind is Kind.EQUAL


def test_means_alone_that_do_not_vary_tell_nothing() -> None:
    found, _ = confirm({"a": np.full(14, 0.9), "b": np.full(14, 0.5), "c": np.full(14, 0.9)}, MARGIN, LOOKS)
    assert found.kind is Kind.UNDECIDED


def test_one_method_has_nothing_to_be_compared_with() -> None:
    found, runs = confirm({"a": CLEAR["a"]}, MARGIN, LOOKS)
    assert (found.kind, runs) == (Kind.UNDECIDED, LOOKS[0])


@pytest.mark.parametrize(
    ("scores", "looks"),
    [({}, LOOKS), (CLEAR, (1, 3)), (CLEAR, (5, 3)), (CLEAR, (3, 3)), ({"a": np.array([0.9, np.nan])}, LOOKS)],
)
def test_what_can_not_be_judged_is_refused(scores: dict[str, Floats], looks: Sequence[int]) -> None:
    with pytest.raises(ValueError, match="must"):
        judge(scores, margin=MARGIN, looks=looks)


def test_levels_of_looks_are_those_of_obrien_and_fleming() -> None:
    # Jennison and Turnbull (2000), table 2.3: five equal steps, 5%: C = 2.040, so z = 2.040 sqrt(5 / k)
    assert look_levels((1, 2, 3, 4, 5)) == pytest.approx((5.1e-6, 1.26e-3, 8.45e-3, 0.0226, 0.0413), rel=0.04)
    assert look_levels((10,)) == (0.05,)


@pytest.mark.parametrize(("items", "margin"), [(300, 0.041), (1319, 0.0195)])
def test_the_default_margin_is_the_noise_of_a_difference_on_as_many_items(items: int, margin: float) -> None:
    assert default_margin(items) == pytest.approx(margin, abs=5e-4)
    draw = np.random.default_rng(0).binomial(items, 0.5, (20000, 2)) / items
    assert default_margin(items) == pytest.approx((draw[:, 0] - draw[:, 1]).std(), rel=0.02)


@cache
def outcomes(truth: Truth, repetitions: int) -> tuple[float, float, float]:
    """Share that ends with a claim, share of wrong claims, jobs on average."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(repetitions):
        verdict, runs = confirm(truth.draw(LOOKS[-1], random), default_margin(truth.items), LOOKS)
        found.append((verdict.kind in (Kind.BEST, Kind.EQUAL), is_wrong(verdict, truth), runs))
    decided, wrong, runs = np.mean(found, axis=0)
    return float(decided), float(wrong), float(runs)


EQUALS = Truth((0.5,) * 4, (0.03,) * 4, 300)
MARGIN_300 = default_margin(300)
JUST_WORSE = Truth((0.51, 0.51 - MARGIN_300 - 0.001, 0.3), (0.02,) * 3, 300)


def test_equal_methods_have_a_best_in_few_cases() -> None:
    random = np.random.default_rng(0)
    kinds = [confirm(EQUALS.draw(14, random), MARGIN_300, LOOKS)[0].kind for _ in range(60)]
    assert kinds.count(Kind.BEST) <= 3


def test_one_just_below_the_margin_is_called_as_good_in_few_cases() -> None:
    assert outcomes(JUST_WORSE, 60)[1] <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("truth", [*TRUTHS.values(), JUST_WORSE], ids=[*TRUTHS, "just worse"])
def test_claims_are_wrong_in_at_most_one_case_of_twenty(truth: Truth) -> None:
    assert outcomes(truth, MANY)[1] <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("truth", COLLAPSING.values(), ids=COLLAPSING)
def test_claims_about_rivals_that_collapse_are_wrong_in_at_most_one_case_of_ten(truth: Truth) -> None:
    assert outcomes(truth, MANY)[1] <= 0.1


@pytest.mark.slow
def test_three_of_four_sweeps_are_decided_with_forty_jobs() -> None:
    decided, _, runs = np.mean([outcomes(truth, MANY) for truth in TRUTHS.values()], axis=0)
    assert decided >= 0.73
    assert runs <= 40


def test_the_margin_of_scores_that_are_no_shares_follows_how_much_items_differ() -> None:
    draw = np.random.default_rng(0).normal(0.5, 0.1, (3, 400))
    assert margin_of([draw, draw + 0.2], 3) == pytest.approx(default_margin(400, 0.1), rel=0.05)
    assert margin_of([(draw > 0.5).astype(float)], 3) == default_margin(400)
    assert margin_of([draw[:, :1]], 3) == 0.0


def test_a_margin_does_not_change_with_later_seeds() -> None:
    draw = np.random.default_rng(0).normal(0.5, np.linspace(0.1, 0.9, 9)[:, None], (9, 400))
    assert margin_of([draw[:3]], 3) == margin_of([draw], 3)
