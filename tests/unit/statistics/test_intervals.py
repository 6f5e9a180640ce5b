"""A method's mean score over seeds and test items, and how sure it is."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from peftsweep.records.jobs import read_item_scores, score_interval
from peftsweep.records.metrics import within_ends
from peftsweep.statistics.intervals import Floats, share_interval, two_way_interval, variance_parts

ACCURACY = "test/accuracy"
ITEMS = ([1, 0, 1, 1, 0, 1], [1, 0, 0, 1, 0, 1], [1, 1, 1, 1, 0, 1])


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def simulate(count: int, seeds: int, items: int, *, of_items: float, of_seeds: float) -> Floats:
    """(count, seeds, items) answers, right half of the time in the long run; items and seeds are fresh each time."""
    draw = np.random.default_rng(0)
    chance = 0.5 + draw.uniform(-of_items, of_items, (count, 1, items)) + draw.normal(0, of_seeds, (count, seeds, 1))
    return (draw.random((count, seeds, items)) < chance).astype(float)


def held(scores: Floats) -> float:
    """How often the interval holds the truth, which is half."""
    return float(np.mean(np.abs(scores.mean(axis=(1, 2)) - 0.5) <= variance_parts(scores).half_width))


def test_the_parts_of_the_variance_are_those_of_an_analysis_of_variance() -> None:
    scores = np.array(ITEMS, dtype=float)
    rest = scores - scores.mean(axis=0) - scores.mean(axis=1)[:, None] + scores.mean()
    parts = variance_parts(scores)
    assert parts.of_seeds == pytest.approx(scores.mean(axis=1).var(ddof=1) / 3)
    assert parts.of_items == pytest.approx(scores.mean(axis=0).var(ddof=1) / 6)
    assert parts.of_noise == pytest.approx((rest**2).sum() / (2 * 5) / 18)


def test_where_only_items_vary_the_interval_is_students() -> None:
    scores = np.repeat(np.random.default_rng(0).normal(size=(1, 20)), 3, axis=0)
    half = t.ppf(0.975, 19) * scores[0].std(ddof=1) / math.sqrt(20)
    assert variance_parts(scores).half_width == pytest.approx(half, rel=2e-3)


def test_where_only_seeds_vary_the_interval_is_students() -> None:
    scores = np.repeat([[0.1], [0.5], [0.7]], 20, axis=1)
    half = t.ppf(0.975, 2) * np.std([0.1, 0.5, 0.7], ddof=1) / math.sqrt(3)
    assert variance_parts(scores).half_width == pytest.approx(half, rel=1e-2)


@pytest.mark.parametrize(
    ("seeds", "items", "of_items", "of_seeds"),
    [
        (2, 300, 0.4, 0.05),
        (2, 300, 0.4, 0.1),
        (3, 60, 0.4, 0.1),
        (3, 300, 0.35, 0.02),
        (3, 300, 0.35, 0.05),
        (5, 300, 0.35, 0.02),
        (3, 300, 0.0, 0.0),
    ],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(
    seeds: int, items: int, of_items: float, of_seeds: float
) -> None:
    assert 0.93 <= held(simulate(1000, seeds, items, of_items=of_items, of_seeds=of_seeds)) <= 0.97


def test_one_interval_is_that_of_the_stacked_ones() -> None:
    scores = 10 * simulate(3, 4, 50, of_items=0.3, of_seeds=0.05)
    half = variance_parts(scores).half_width
    assert two_way_interval(scores[1]) == pytest.approx((scores[1].mean() - half[1], scores[1].mean() + half[1]))


def test_seeds_that_disagree_make_the_interval_wide() -> None:
    shuffle = random.Random(0)

    def width(*rights: int) -> float:
        found = score_interval([shuffle.sample([1] * n + [0] * (100 - n), 100) for n in rights], ACCURACY, None)
        assert found is not None
        return found[1] - found[0]

    assert width(30, 50, 70) > 2 * width(50, 50, 50)


def test_a_single_seed_has_the_interval_of_its_job() -> None:
    assert score_interval(ITEMS[:1], ACCURACY, (0.2, 0.9)) == (0.2, 0.9)


@pytest.mark.parametrize("right", [0, 300])
def test_seeds_that_agree_on_everything_have_the_interval_of_wilson(right: int) -> None:
    scores = np.tile(np.arange(300) < right, (3, 1)).astype(float)
    assert two_way_interval(scores) == pytest.approx(share_interval(3 * right, 900))
    assert np.ptp(two_way_interval(scores)) > 0.004


def test_no_interval_of_answers_is_narrower_than_that_of_wilson() -> None:
    draw = np.random.default_rng(0)
    right = (draw.random((2, 300)) < 0.5).astype(float)
    right[1] = 1 - right[0]  # every item is right once, so that nothing seems to vary
    for scores in (right, *((draw.random((5, 300)) < share).astype(float) for share in (0.01, 0.97))):
        low, high = share_interval(int(scores.sum()), scores.size)
        assert np.ptp(two_way_interval(scores)) >= high - low - 1e-12


@pytest.mark.parametrize("scores", [[[1, 0, 1], [1, 0]], [[1], [0]], [[], []], []])
def test_seeds_without_the_same_items_have_no_interval(scores: list[list[float]]) -> None:
    assert score_interval(scores, ACCURACY, (0.2, 0.9)) is None


def test_a_share_stays_between_nothing_and_all() -> None:
    interval = score_interval([[1, 1, 1, 0], [0, 0, 0, 0]], ACCURACY, None)
    assert interval is not None
    assert 0.0 <= interval[0] < 0.01
    assert interval[1] <= 1.0


def test_a_users_own_score_has_no_such_bounds() -> None:
    interval = score_interval([[7, 9, 8], [9, 6, 8]], "test/score", None)
    assert interval is not None
    assert 1 < interval[0] < 47 / 6 < interval[1]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("memory/train_peak_reserved_bytes", (0.0, 5.0)),
        ("time/train_seconds", (0.0, 5.0)),
        ("valid/loss", (0.0, 5.0)),
        ("drift", (0.0, 1.0)),
        ("test/accuracy", (0.0, 1.0)),
        ("test/dino_similarity", (-1.0, 1.0)),
        ("forgetting_nats", (-5.0, 5.0)),
        ("test/score", (-5.0, 5.0)),
    ],
)
def test_an_interval_ends_where_the_metric_does(key: str, expected: tuple[float, float]) -> None:
    assert within_ends(-5.0, 5.0, key) == expected


@pytest.mark.parametrize("key", ["correct", "score", "similarity"])
def test_an_item_is_scored_by_what_its_task_calls_it(tmp_path: Path, key: str) -> None:
    path = write_lines(tmp_path / "predictions.jsonl", [{"prompt": "?", key: 1}, {"prompt": "?", key: 0}])
    assert read_item_scores(path) == [1.0, 0.0]


def test_pictures_of_one_photo_are_one_test_item(tmp_path: Path) -> None:
    rows = [{"photo": photo, "similarity": value} for photo, value in (("a", 0.1), ("b", 0.5), ("a", 0.3))]
    assert read_item_scores(write_lines(tmp_path / "predictions.jsonl", rows)) == pytest.approx([0.2, 0.5])


def test_a_job_without_test_items_has_none(tmp_path: Path) -> None:
    assert read_item_scores(tmp_path / "predictions.jsonl") == []


@pytest.mark.parametrize("line", ['{"correct": tr', "[1]"])
def test_half_a_line_is_told(tmp_path: Path, line: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=r".+"):
        read_item_scores(path)


@pytest.mark.filterwarnings("error")
def test_draws_in_which_nothing_varies_are_no_division_by_nearly_zero() -> None:
    """Seeds that differ less than noise would make them: in some draws of the variance nothing is left."""
    generator = np.random.default_rng(0)
    scores = 1000.0 * np.stack([generator.permutation(np.arange(400) % 2) for _ in range(3)])
    low, high = two_way_interval(scores)
    assert low < scores.mean() < high
