"""The rows of the metric table, and one metric for several jobs."""

from __future__ import annotations

import pytest

from peftsweep.errors import ConfigError, DataError
from peftsweep.records.metrics import METRICS, first_measured, metric_words, resolve, sign

TRAIN, JOB = "memory/train_peak_reserved_bytes", "memory/job_peak_rss_bytes"


@pytest.mark.parametrize("word", sorted(metric_words()))
def test_every_word_means_metrics_that_have_a_better_side(word: str) -> None:
    assert len({sign(key) for key in metric_words()[word]}) == 1


def test_a_metric_without_a_better_side_compares_nothing() -> None:
    with pytest.raises(ConfigError, match="must have a better side"):
        sign("train/tokens")


def test_a_word_means_one_metric_for_all_rows() -> None:
    assert resolve("memory", [{TRAIN, JOB}, {JOB}]) == JOB
    assert resolve("memory", [{TRAIN, JOB}, {TRAIN, JOB}]) == TRAIN
    assert resolve("memory", [{TRAIN}, set()]) == TRAIN


def test_a_metric_that_no_row_has() -> None:
    with pytest.raises(DataError, match=f"drift must have been measured.*{JOB}"):
        resolve("drift", [{JOB}])


def test_who_lacks_the_metric_that_counts_has_not_measured_it() -> None:
    assert first_measured((TRAIN, JOB), [{TRAIN, JOB}, {TRAIN}]) == TRAIN
    assert first_measured((TRAIN, JOB), []) is None


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_says_what_it_means_and_its_name_ends_with_its_unit(name: str) -> None:
    metric = METRICS[name]
    assert metric.key == name
    assert metric.meaning
    endings = {"bytes": "_bytes", "s": "_seconds", "J": "_joules"}
    assert name.endswith(endings.get(metric.unit, ""))
