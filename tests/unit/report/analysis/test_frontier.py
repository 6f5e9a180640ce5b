"""The rows that no other beats, and what beats the rest."""

from __future__ import annotations

import operator
import random
from pathlib import Path

import pytest
from job_writer import write_job

from peftsweep.errors import ConfigError, DataError
from peftsweep.report.analysis.frontier import MOST_DRAWN, Pareto, find_frontier
from peftsweep.report.analysis.groups import compare
from peftsweep.report.sources import load_jobs

MEMORY = "memory/train_peak_reserved_bytes"


def row(folder: Path, method: str, right: int, memory: float, seeds: int = 2, **known: object) -> None:
    for seed in range(seeds):
        items = [1] * right + [0] * (40 - right)
        write_job(folder / f"{method}-{seed}", method, items, seed=seed, metrics={MEMORY: memory + seed}, **known)


def frontier(folder: Path, *words: str) -> Pareto:
    loaded = load_jobs(folder)
    return find_frontier(compare(loaded).groups[0], loaded, words or ("score", "memory"))


@pytest.fixture
def methods(tmp_path: Path) -> Path:
    row(tmp_path, "big", 36, 20e9)
    row(tmp_path, "small", 20, 5e9)
    row(tmp_path, "poor", 10, 19e9)
    return tmp_path


def test_the_frontier_has_each_directions_best(methods: Path) -> None:
    found = frontier(methods)
    assert found.metrics == ("test/accuracy", MEMORY)
    assert {point.name: point.on_frontier for point in found.points} == {"big": True, "small": True, "poor": False}


def test_a_dominated_row_says_what_dominates_it(methods: Path) -> None:
    found = {point.name: point for point in frontier(methods).points}
    assert found["poor"].dominated_by == ("small",)
    assert found["big"].dominated_by == ()


def test_a_clear_frontier_is_there_in_nearly_all_draws_and_a_clear_loser_in_nearly_none(methods: Path) -> None:
    shares = {point.name: point.share for point in frontier(methods).points}
    assert shares["small"] == 1.0
    assert shares["big"] is not None
    assert shares["poor"] is not None
    assert shares["big"] > 0.99
    assert shares["poor"] < 0.01


def test_a_row_that_is_about_as_good_is_on_it_about_half_of_the_time(tmp_path: Path) -> None:
    for seed in range(3):
        write_job(tmp_path / f"a-{seed}", "a", [1, 0] * 20, seed=seed, metrics={MEMORY: 5e9})
        write_job(tmp_path / f"b-{seed}", "b", [0, 1] * 20, seed=seed, metrics={MEMORY: 5e9 + 1})
    shares = {point.name: point.share for point in frontier(tmp_path).points}
    assert shares["a"] == 1.0
    assert shares["b"] is not None
    assert 0.3 < shares["b"] < 0.7


def test_the_same_seed_draws_the_same(methods: Path) -> None:
    assert frontier(methods) == frontier(methods)


def test_three_metrics(methods: Path) -> None:
    assert len(frontier(methods, "score", "memory", "time").metrics) == 3


def test_published_points_stand_beside_the_frontier(methods: Path) -> None:
    row(methods, "theirs", 40, 1e9, seeds=1, config={"origin": "reference"})
    found = {point.name: point for point in frontier(methods).points}
    theirs = next(point for name, point in found.items() if "theirs" in name)
    assert (theirs.on_frontier, theirs.share, theirs.origin) == (False, None, "reference")
    assert found["big"].on_frontier


def test_rows_that_lack_a_metric_are_named(methods: Path) -> None:
    write_job(methods / "lacking", "lacking", [1] * 40, metrics={"energy/train_joules": 5.0})
    found = frontier(methods, "score", "energy")
    assert [point.name for point in found.points] == ["lacking"]
    assert set(found.missing) == {"big", "small", "poor"}


def test_of_many_rows_the_shares_of_the_nearest_are_drawn_and_nothing_of_the_frontier_is_lost(tmp_path: Path) -> None:
    draw = random.Random(0)
    for number in range(MOST_DRAWN + 10):
        row(tmp_path, f"m{number:02}", draw.randrange(40), draw.uniform(1e9, 5e9), seeds=1)
    points = frontier(tmp_path).points
    means = {point.name: (-point.values["test/accuracy"].mean, point.values[MEMORY].mean) for point in points}
    for point in points:
        mine = means[point.name]
        beaten_by = {
            name for name, other in means.items() if other != mine and all(map(operator.le, other, mine))
        }  # by definition
        assert set(point.dominated_by) == beaten_by
        assert point.on_frontier == (not beaten_by)
    drawn = [point for point in points if point.share is not None]
    assert len(drawn) == MOST_DRAWN
    assert all(point in drawn for point in points if point.on_frontier)


def test_an_unknown_metric(methods: Path) -> None:
    with pytest.raises(ConfigError, match=r"memry.*Did you mean memory"):
        frontier(methods, "score", "memry")


def test_a_metric_that_nobody_measured(methods: Path) -> None:
    with pytest.raises(DataError, match=r"drift must have been measured.*forgetting_nats"):
        frontier(methods, "score", "drift")


@pytest.mark.parametrize("words", [("score",), ("score", "accuracy"), ("score", "memory", "time", "forgetting")])
def test_one_metric_or_four_make_no_frontier(methods: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="two or three"):
        frontier(methods, *words)


def test_a_metric_without_a_better_side(methods: Path) -> None:
    with pytest.raises(ConfigError, match="better side"):
        frontier(methods, "score", "train/tokens")
