"""Upper bounds that a winner keeps to."""

from __future__ import annotations

import pytest

from peftsweep.errors import ConfigError
from peftsweep.sweeps.limits import Limit, parse_limits

ACCELERATOR, HOST = "memory/train_peak_reserved_bytes", "memory/job_peak_rss_bytes"


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("memory<=12GB", Limit("memory", 12e9)),
        ("memory <= 12 gb", Limit("memory", 12e9)),
        ("memory<=1.5GiB", Limit("memory", 1.5 * 2**30)),
        ("memory<=5e8B", Limit("memory", 5e8)),
        ("forgetting<=0.1", Limit("forgetting", 0.1)),
        ("forgetting<=-0.1", Limit("forgetting", -0.1)),
        ("time<=5min", Limit("time", 300)),
        ("time<=90", Limit("time", 90)),
        ("parameters<=3M", Limit("parameters", 3e6)),
        ("adapter/file_bytes<=2MB", Limit("adapter/file_bytes", 2e6)),
    ],
)
def test_a_limit_is_read_in_its_metrics_unit(text: str, limit: Limit) -> None:
    assert parse_limits(text) == (limit,)


def test_several_limits_are_separated_by_commas() -> None:
    assert [limit.name for limit in parse_limits("memory<=12GB,forgetting<=0.1")] == ["memory", "forgetting"]


@pytest.mark.parametrize("text", [None, ""])
def test_nothing_is_no_limit(text: str | None) -> None:
    assert parse_limits(text) == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("memory<12GB", "metric<=number"),
        ("memory>=12GB", "metric<=number"),
        ("memory<=much", "metric<=number"),
        ("memory<=12GB,", "metric<=number"),
        ("memroy<=12GB", "memory"),
        ("memory<=12", "GB"),  # bytes, which nobody means
        ("memory<=12XB", "GB"),
        ("memory<=1.2.3GB", "number"),
        ("time<=5M", "min"),
        ("forgetting<=1GB", "no unit"),
    ],
)
def test_what_is_no_limit_is_refused_with_the_way_out(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match="constraint") as caught:
        parse_limits(text)
    assert told in str(caught.value)


@pytest.mark.parametrize(("measured", "violation"), [(15.0, 0.5), (10.0, 0.0), (5.0, -0.5)])
def test_a_violation_is_positive_above_the_limit(measured: float, violation: float) -> None:
    assert Limit("time", 10.0).violation({"time/train_seconds": measured}) == pytest.approx(violation)


@pytest.mark.parametrize(("most", "measured"), [(0.0, 0.1), (-0.2, -0.1)])
def test_a_violation_is_positive_above_limits_that_are_not(most: float, measured: float) -> None:
    violation = Limit("forgetting", most).violation({"forgetting_nats": measured})
    assert violation is not None
    assert violation > 0


def test_memory_is_the_accelerators_where_there_is_one() -> None:
    assert Limit("memory", 10.0).violation({ACCELERATOR: 5.0, HOST: 20.0}) == -0.5


def test_memory_is_the_hosts_where_there_is_no_accelerator() -> None:
    assert Limit("memory", 10.0).violation({HOST: 20.0}) == 1.0


def test_what_was_not_measured_violates_nothing() -> None:
    assert Limit("forgetting", 0.1).violation({HOST: 20.0}) is None
