"""Metrics by short name, and limits on them."""

from __future__ import annotations

import pytest

from peftsweep.errors import ConfigError, DataError
from peftsweep.report.metrics import WORDS, parse_limits, resolve, sign
from peftsweep.results import METRICS

TRAIN, JOB = "memory/train_peak_reserved_bytes", "memory/job_peak_rss_bytes"


@pytest.mark.parametrize("word", sorted(WORDS))
def test_every_word_means_metrics_that_have_a_better_side(word: str) -> None:
    assert len({sign(key) for key in WORDS[word]}) == 1
    assert set(WORDS[word]) <= METRICS.keys()


def test_a_word_means_one_metric_for_all_rows() -> None:
    assert resolve("memory", [{TRAIN, JOB}, {JOB}]) == JOB
    assert resolve("memory", [{TRAIN, JOB}, {TRAIN, JOB}]) == TRAIN
    assert resolve("memory", [{TRAIN}, set()]) == TRAIN


def test_a_metric_that_no_row_has() -> None:
    with pytest.raises(DataError, match=f"drift must have been measured.*{JOB}"):
        resolve("drift", [{JOB}])


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("memory<=16GB", 16e9),
        ("memory <= 16 GiB", 16 * 2**30),
        ("time<=20min", 1200.0),
        ("time<=90", 90.0),
        ("params<=9M", 9e6),
        ("forgetting<=0.1", 0.1),
        ("accuracy>=40%", 0.4),
        ("drift<=1e-2", 0.01),
        ("test/loss<=-1", -1.0),
    ],
)
def test_a_limit_is_in_the_unit_of_its_metric(text: str, bound: float) -> None:
    (limit,) = parse_limits([text])
    assert (limit.bound, limit.at_most) == (pytest.approx(bound), "<=" in text)


def test_several_limits_may_stand_in_one_word() -> None:
    assert [limit.name for limit in parse_limits(["memory<=1GB,forgetting<=0.1", "accuracy>=0.5"])] == [
        "memory",
        "forgetting",
        "accuracy",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory<=16", "Write one of B, KB"),
        ("memory<=16 apples", "Write one of"),
        ("memory<16GB", "must be written"),
        ("memory", "must be written"),
        ("memry<=16GB", "Did you mean memory"),
        ("forgetting<=0.1GB", "unit of its metric"),
        ("time<=1.2.3", "unit of its metric"),
    ],
)
def test_what_is_no_limit(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_limits([text])


def test_how_far_off_a_value_is() -> None:
    most, least = parse_limits(["memory<=10GB", "accuracy>=0.5"])
    assert most.violation(15e9) == pytest.approx(0.5)
    assert most.violation(10e9) == 0
    assert least.violation(0.25) == pytest.approx(0.5)
    assert least.violation(0.75) < 0
