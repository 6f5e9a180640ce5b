"""What an answer is worth; numbers are worked out by hand, ChartQA's rule is that of Masry et al. 2022."""

from __future__ import annotations

import math

import pytest

from peftsweep.errors import ConfigError
from peftsweep.modalities.text.rows import Row
from peftsweep.modalities.vision_language.scores import (
    anls,
    build_judging,
    edit_distance,
    exact_match,
    relaxed_accuracy,
)
from peftsweep.modalities.vision_language.settings import VqaConfig


def count_letters(prompt: str, target: str, generated: str) -> float:
    return float(len(generated))


def no_number(prompt: str, target: str, generated: str) -> float:
    return math.nan


@pytest.mark.parametrize(
    ("generated", "target", "right"),
    [("Red.", "red", 1), ("  red  ", "red", 1), ("red ball", "red", 0), ("", "red", 0), ("2", "2.0", 0)],
)
def test_exact_match_overlooks_capitals_and_a_full_stop(generated: str, target: str, right: float) -> None:
    assert exact_match(generated, target) == right


@pytest.mark.parametrize(
    ("generated", "target", "right"),
    [
        ("14.6", "14", 1),  # 4.3% off
        ("14.8", "14", 0),  # 5.7% off
        ("1,050", "1000", 1),
        ("10%", "0.1", 1),
        ("0", "0", 1),
        ("0.01", "0", 0),
        ("-14", "14", 0),
        ("Yes", "yes", 1),
        ("fourteen", "14", 0),
        ("nan", "14", 0),
    ],
)
def test_relaxed_accuracy_takes_numbers_within_five_percent(generated: str, target: str, right: float) -> None:
    assert relaxed_accuracy(generated, target) == right


@pytest.mark.parametrize(
    ("generated", "target", "likeness"),
    [("harbour", "harbour", 1.0), ("harbor", "harbour", 6 / 7), ("house", "harbour", 0.0), ("", "", 1.0)],
)
def test_anls_is_the_share_of_letters_that_agree_or_nothing(generated: str, target: str, likeness: float) -> None:
    assert anls(generated, target) == pytest.approx(likeness)


@pytest.mark.parametrize(("one", "other", "steps"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3)])
def test_edit_distance(one: str, other: str, steps: int) -> None:
    assert edit_distance(one, other) == edit_distance(other, one) == steps


def test_the_users_scorer_comes_first_and_the_other_measure_stays() -> None:
    judging = build_judging(VqaConfig(name="vqa", scorer=f"{__name__}:count_letters"))
    judged = judging.judge(Row("What?", "red"), "red")
    assert judging.score == "score"
    assert judged.values == {"score": 3.0, "exact_match": 1.0}


def test_a_scorer_that_gives_no_number_is_told() -> None:
    judging = build_judging(VqaConfig(name="vqa", scorer=f"{__name__}:no_number"))
    with pytest.raises(ConfigError, match="number"):
        judging.judge(Row("What?", "red"), "red")


def test_another_measure_is_another_way_to_judge() -> None:
    keys = {
        build_judging(VqaConfig(name="vqa", judge=name)).key for name in ("exact_match", "anls", "relaxed_accuracy")
    }
    assert len(keys) == 3
