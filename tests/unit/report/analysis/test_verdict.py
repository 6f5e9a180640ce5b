"""A verdict in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from peftsweep.records.quantities import MINUS
from peftsweep.report.analysis.verdict import describe_verdict
from peftsweep.statistics.sequential import Bound, Kind, Verdict

ACCURACY, SIMILARITY, LOOKS = "test/accuracy", "test/dino_similarity", (3, 5, 7)
NEAR, FAR = Bound(0.012, -0.005, 0.029, 0.2, 0.019), Bound(0.5, 0.4, 0.6, 1e-9, None)
UNDECIDED = Verdict(
    Kind.UNDECIDED, "lora", ("lora", "oft"), {}, 0.02, {"ia3": 3}, {"oft": NEAR, "ia3": FAR}, 7, 0.02, {}
)
OPEN = replace(UNDECIDED, kind=Kind.OPEN, look=5, wanted={"lora": 7, "oft": 7})


def headline(verdict: Verdict, score: str = ACCURACY) -> str:
    return describe_verdict(verdict, score, LOOKS).headline


def test_a_winner_is_named_with_whom_it_is_ahead_of() -> None:
    found = replace(UNDECIDED, kind=Kind.BEST, contenders=("lora",), dropped={"oft": 7, "ia3": 3})
    assert headline(found) == "lora is best: its accuracy is ahead of all 2 others beyond chance."
    nearest = f"Behind lora (95% interval): oft by 1.2 points ({MINUS}0.5 to 2.9)."
    assert describe_verdict(found, ACCURACY).details[0] == nearest


def test_equal_methods_are_told_with_the_margin_and_who_is_behind() -> None:
    found = replace(UNDECIDED, kind=Kind.EQUAL)
    assert headline(found) == "lora is within 2 points of the best; as good: oft. ia3 is behind."


def test_a_margin_of_a_score_that_is_no_share_has_its_own_unit() -> None:
    assert "is within 0.02 of the best" in headline(replace(UNDECIDED, kind=Kind.EQUAL), SIMILARITY)


def test_an_undecided_verdict_tells_intervals_of_the_differences() -> None:
    assert headline(UNDECIDED) == (
        "Undecided: lora has the highest accuracy, but oft is not told apart from it; ia3 is behind."
    )
    assert f"oft by 1.2 points ({MINUS}0.5 to 2.9)" in describe_verdict(UNDECIDED, ACCURACY, LOOKS).details[0]


def test_the_word_tie_is_never_said() -> None:
    for kind in (Kind.EQUAL, Kind.UNDECIDED):
        found = describe_verdict(replace(UNDECIDED, kind=kind), ACCURACY, LOOKS)
        assert " tie" not in " ".join([found.headline, *found.details])


def test_a_sweep_that_is_not_over_says_what_comes_next() -> None:
    assert headline(OPEN).startswith("Not decided yet: lora has the highest accuracy, but oft is not told apart")
    assert headline(OPEN).endswith("Next look: 7 seeds of lora and oft.")


def test_before_the_first_look_there_is_no_leader() -> None:
    unseen = replace(OPEN, leader=None, contenders=("lora", "oft"), wanted={"lora": 3, "oft": 3}, bounds={}, look=0)
    found = describe_verdict(unseen, ACCURACY, LOOKS)
    assert found.headline == "Not judged yet: that takes 3 seeds of each of lora and oft."
    assert found.details == ()


def test_methods_that_all_have_the_same_score_have_no_winner() -> None:
    same = replace(UNDECIDED, contenders=("lora", "oft"), dropped={}, bounds={"oft": Bound(0.0, 0.0, 0.0, 1.0, 0.01)})
    assert headline(same) == "No winner: lora, oft all have the same accuracy."


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        (LOOKS, "Judged at 3, 5 and 7 seeds, with a margin of 2 points and 5% of false claims shared out"),
        (LOOKS, "3 looks; behind: ia3 after 3."),
        ((7,), "Judged once, with a margin of 2 points"),
        ((), "Judged once, with a margin of 2 points"),
    ],
)
def test_it_is_told_how_often_was_looked(looks: tuple[int, ...], told: str) -> None:
    assert any(told in line for line in describe_verdict(UNDECIDED, ACCURACY, looks).details)


def test_seeds_that_collapsed_are_told_and_how_many_may_unseen() -> None:
    details = describe_verdict(replace(UNDECIDED, collapsed={"oft": 2}), ACCURACY, LOOKS).details
    assert "Seeds that collapsed, which lost more than half of the score: oft 2." in details
    assert "lora: none of 7 seeds collapsed, so at most 35% of seeds do (95% confidence)." in details


def test_many_names_are_counted_in_the_headline() -> None:
    names = [f"m{i}" for i in range(9)]
    many = replace(UNDECIDED, contenders=("lora", *names), dropped={}, bounds=dict.fromkeys(names, NEAR))
    assert "9 others are not told apart from it" in headline(many)
    assert "and 3 more." in describe_verdict(many, ACCURACY, LOOKS).details[0]
