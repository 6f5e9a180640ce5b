"""Metrics by short name, and limits on them."""

from __future__ import annotations

import pytest

from peftsweep.config.units import UNITS, parse_bytes
from peftsweep.errors import ConfigError
from peftsweep.records.limits import Limit, parse_limits, violations
from peftsweep.records.metrics import METRICS, candidates, metric_words

ACCELERATOR, HOST = "memory/train_peak_reserved_bytes", "memory/job_peak_rss_bytes"


def limit_of(text: str) -> Limit:
    (limit,) = parse_limits([text])
    return limit


@pytest.mark.parametrize("word", sorted(metric_words()))
def test_every_word_means_metrics_of_one_unit_and_direction(word: str) -> None:
    assert len({(METRICS[key].unit, METRICS[key].direction) for key in candidates(word)}) == 1


def test_a_key_means_itself() -> None:
    assert candidates("valid/loss") == ("valid/loss",)


def test_every_unit_is_one_that_metrics_have() -> None:
    assert set(UNITS) <= {metric.unit for metric in METRICS.values()}


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("memory<=16GB", 16e9),
        ("memory <= 16 gib", 16 * 2**30),
        ("memory<=1.5GiB", 1.5 * 2**30),
        ("memory<=5e8B", 5e8),
        ("time<=20min", 1200.0),
        ("time<=90", 90.0),
        ("params<=9M", 9e6),
        ("parameters<=3M", 3e6),
        ("adapter/file_bytes<=2MB", 2e6),
        ("energy<=1Wh", 3600.0),
        ("forgetting<=0.1", 0.1),
        ("forgetting<=0.1 nats", 0.1),
        ("forgetting<=-0.1", -0.1),
        ("accuracy>=40%", 0.4),
        ("accuracy>=0.5", 0.5),
        ("drift<=1e-2", 0.01),
        ("test/loss<=+1", 1.0),
        ("throughput>=900", 900.0),
    ],
)
def test_a_limit_is_in_the_unit_of_its_metric(text: str, bound: float) -> None:
    limit = limit_of(text)
    assert (limit.bound, limit.at_most, limit.text) == (pytest.approx(bound), "<=" in text, text)


def test_several_limits_may_stand_in_one_word() -> None:
    limits = parse_limits(["memory<=1GB, forgetting<=0.1", "accuracy>=0.5"])
    assert [limit.name for limit in limits] == ["memory", "forgetting", "accuracy"]
    assert limits[1].text == "forgetting<=0.1"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("memory<16GB", "metric<=number or metric>=number"),
        ("memory", "metric<=number"),
        ("memory<=much", "metric<=number"),
        ("memory<=16GB,", "metric<=number"),
        ("", "metric<=number"),
        ("memry<=16GB", "Did you mean memory"),
        ("zzz<=1", "Choose from: accuracy, anls, drift"),
        ("memory<=16", "Write one of B, KB"),  # bytes, which nobody means
        ("memory<=16 apples", "Write one of B, KB"),
        ("memory<=1.2.3GB", "a number in a unit"),
        ("time<=5M", "alone, or one of s, min, h after it"),
        ("forgetting<=0.1GB", "alone, or one of nats after it"),
        ("forgetting<=10%", "nats"),  # of what?
        ("throughput>=9k", "Write the number alone."),
    ],
)
@pytest.mark.parametrize("source", ["constraint", "the command line"])
def test_what_is_no_limit_is_refused_with_its_source_and_the_way_out(text: str, told: str, source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_limits([text], source)
    assert told in str(caught.value)
    assert f"(from {source})" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value", "violation"),
    [
        ("time<=10", 15.0, 0.5),
        ("time<=10", 10.0, 0.0),
        ("time<=10", 5.0, -0.5),
        ("accuracy>=0.5", 0.25, 0.5),
        ("accuracy>=0.5", 0.75, -0.5),
        ("forgetting<=0", 0.1, 0.1),
        ("forgetting<=-0.2", -0.1, 0.5),
    ],
)
def test_a_violation_is_the_share_by_which_a_value_is_off(text: str, value: float, violation: float) -> None:
    assert limit_of(text).violation(value) == pytest.approx(violation)


def test_violations_are_told_by_the_limits_names() -> None:
    limits = parse_limits(["memory<=10B,forgetting<=0.1,time<=100"])
    assert violations(limits, [{HOST: 20.0, "time/train_seconds": 50.0}]) == [{"memory": 1.0, "time": -0.5}]
    assert violations(limits, [{HOST: 20.0, ACCELERATOR: 5.0}]) == [{"memory": -0.5}]
    assert violations(limits, [{}]) == [{}]


def test_memory_is_of_one_device_for_all_jobs_of_a_comparison() -> None:
    limits = parse_limits(["memory<=10B"])
    assert violations(limits, [{HOST: 20.0, ACCELERATOR: 5.0}, {HOST: 5.0}]) == [{"memory": 1.0}, {"memory": -0.5}]
    assert violations(limits, [{ACCELERATOR: 5.0}, {HOST: 20.0, ACCELERATOR: 20.0}, {HOST: 20.0}]) == [
        {"memory": -0.5},
        {"memory": 1.0},
        {},
    ]


@pytest.mark.parametrize(("seconds", "violation"), [(5.0, 0.5), (30.0, 0.5), (15.0, -0.25)])
def test_of_two_limits_on_one_metric_the_one_that_is_broken_more_counts(seconds: float, violation: float) -> None:
    assert violations(parse_limits(["time>=10,time<=20"]), [{"time/train_seconds": seconds}]) == [{"time": violation}]


@pytest.mark.parametrize(
    ("text", "amount"),
    [("24GB", 24 * 10**9), (" 1.5 GiB ", 3 * 2**29), (".5mb", 500_000), ("80gb", 80 * 10**9), ("7B", 7)],
)
def test_memory_is_a_number_and_a_unit(text: str, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["0", "24", "0GB", "0.1B", "-1GB", "abc", "GB", "", "24 parsecs", "1e3GB", "24GB 2"])
def test_what_is_no_amount_of_memory_is_told_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"memory must be a number above 0 and a unit.*For example: 24GB") as caught:
        parse_bytes(text, "gpu")
    assert "(from gpu)" in str(caught.value)
