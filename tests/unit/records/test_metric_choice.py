"""One metric for several rows, and its better side."""

from __future__ import annotations

import pytest

from peftsweep.errors import ConfigError, DataError
from peftsweep.records.limits import WORDS
from peftsweep.records.metric_choice import resolve, sign

TRAIN, JOB = "memory/train_peak_reserved_bytes", "memory/job_peak_rss_bytes"


@pytest.mark.parametrize("word", sorted(WORDS))
def test_every_word_means_metrics_that_have_a_better_side(word: str) -> None:
    assert len({sign(key) for key in WORDS[word]}) == 1


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
