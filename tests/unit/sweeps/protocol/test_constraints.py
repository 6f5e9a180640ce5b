"""Limits that a winner keeps to."""

from __future__ import annotations

import pytest

from peftsweep.errors import ConfigError
from peftsweep.sweeps.protocol.specification import trial_limits

ACCELERATOR, HOST = "memory/train_peak_reserved_bytes", "memory/job_peak_rss_bytes"


def test_several_limits_are_separated_by_commas() -> None:
    limits = trial_limits("memory<=12GB,forgetting<=0.1,valid/dino_similarity>=40%")
    assert [(limit.name, limit.bound, limit.at_most) for limit in limits] == [
        ("memory", 12e9, True),
        ("forgetting", 0.1, True),
        ("valid/dino_similarity", 0.4, False),
    ]


@pytest.mark.parametrize("text", [None, ""])
def test_nothing_is_no_limit(text: str | None) -> None:
    assert trial_limits(text) == ()


@pytest.mark.parametrize("text", ["memory<12GB", "memroy<=12GB", "memory<=12"])
def test_what_is_no_limit_names_the_constraint(text: str) -> None:
    with pytest.raises(ConfigError, match="from constraint"):
        trial_limits(text)


@pytest.mark.parametrize("text", ["accuracy>=0.5", "score>=50%", "loss<=1", "base/accuracy>=0.1"])
def test_what_only_test_data_tell_is_no_limit_of_a_trial(text: str) -> None:
    """It would be measured for no trial, and so keep none from winning."""
    with pytest.raises(ConfigError, match=f"reads no test data.*recommend '{text}'"):
        trial_limits(f"memory<=1GB,{text}")
