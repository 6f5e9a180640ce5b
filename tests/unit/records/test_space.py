"""Values as a job sees them, coordinates as a sampler sees them, and text as a person types it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config, parse_command_line
from peftsweep.records.space import (
    CAPACITY,
    LR,
    Dimension,
    as_overrides,
    coordinates,
    defaults_of,
    describe_range,
    edges_of,
    values,
    widened,
)
from peftsweep.sweeps.protocol.request import build_space, read_request

RATE = Dimension(LR, 1e-5, 1e-2, log=True)
RANK = Dimension(CAPACITY, choices=(4, 8, 16, 32))
DECAY = Dimension("hparams.weight_decay", 0.0, 0.1)
ROWS = Dimension("hparams.batch_size", 1, 8, integer=True)
NAMES = Dimension("hparams.scheduler", choices=("cosine", "linear"))
ALL = (RATE, RANK, DECAY, ROWS, NAMES)
POINT = {LR: 0.001234, CAPACITY: 16, DECAY.key: 0.0321, ROWS.key: 3, NAMES.key: "linear"}


def test_values_come_back_from_their_coordinates() -> None:
    assert values(ALL, coordinates(ALL, POINT)) == POINT


def test_a_size_is_searched_by_its_index_and_a_rate_as_it_is() -> None:
    assert coordinates(ALL, POINT) == POINT | {CAPACITY: 2}


def test_a_setting_outside_its_range_has_no_coordinate() -> None:
    assert coordinates((RATE, RANK), {LR: 0.1, CAPACITY: 5}) == {}


def test_a_range_that_ends_at_zero_ends_there() -> None:
    assert not Dimension("x", -1.0, 0.0).holds(0.5)


@given(share=st.floats(0, 1), low=st.floats(1e-9, 1e3), ratio=st.floats(1.0001, 1e6))
def test_a_value_is_never_rounded_out_of_its_range(share: float, low: float, ratio: float) -> None:
    high = low * ratio
    for is_log in (True, False):
        dimension = Dimension("x", low, high, log=is_log)
        point = low * ratio**share if is_log else low + share * (high - low)
        assert dimension.holds(dimension.to_value(min(max(point, low), high)))


@pytest.mark.parametrize(("dimension", "value"), [(RATE, 0.00123456), (Dimension("x", 1000.0, 1000.5), 1000.1234567)])
def test_rounding_is_finer_than_a_thousandth_of_what_is_searched(dimension: Dimension, value: float) -> None:
    scale = value if dimension.log else dimension.high - dimension.low  # type: ignore[operator]
    assert 0 < abs(dimension.to_value(value) - value) < scale / 1000


def test_samplers_see_scales() -> None:
    seen = [dimension.coordinate_distribution() for dimension in ALL]
    assert seen == [
        FloatDistribution(1e-5, 1e-2, log=True),
        IntDistribution(0, 3),
        FloatDistribution(0.0, 0.1),
        IntDistribution(1, 8),
        CategoricalDistribution(("cosine", "linear")),
    ]


def test_the_storage_keeps_values_so_that_a_wider_range_fits_it() -> None:
    assert RANK.value_distribution() == IntDistribution(4, 32)
    assert Dimension("x", choices=(0.1, 0.5)).value_distribution() == FloatDistribution(0.1, 0.5)


def test_defaults_are_those_in_the_range() -> None:
    assert defaults_of((Dimension(LR, 1e-5, 1e-2, default=1e-4), NAMES)) == {LR: 1e-4}


@pytest.mark.parametrize(
    ("best", "edges"),
    [
        ({LR: 1e-5}, {LR: "low"}),
        ({LR: 1.2e-5}, {LR: "low"}),  # a fortieth of the three decades from the end
        ({LR: 9e-3, CAPACITY: 32}, {LR: "high", CAPACITY: "high"}),
        ({LR: 1e-3, CAPACITY: 16, NAMES.key: "linear"}, {}),
        ({CAPACITY: 4}, {CAPACITY: "low"}),
        ({DECAY.key: 0.0}, {}),  # nothing lies beyond
    ],
)
def test_best_values_at_an_end_are_found(best: dict[str, Any], edges: dict[str, str]) -> None:
    assert edges_of(ALL, best) == edges


@pytest.mark.parametrize(
    ("dimension", "edge", "wider"),
    [
        (RATE, "low", Dimension(LR, 1e-6, 1e-2, log=True)),
        (RATE, "high", Dimension(LR, 1e-5, 1e-1, log=True)),
        (RANK, "low", Dimension(CAPACITY, choices=(2, 4, 8, 16, 32))),
        (RANK, "high", Dimension(CAPACITY, choices=(4, 8, 16, 32, 64))),
        (Dimension("x", choices=(0.1, 0.2)), "low", Dimension("x", choices=(0.05, 0.1, 0.2))),
        (Dimension("x", choices=(1, 2)), "low", Dimension("x", choices=(1, 2))),
        (Dimension("x", choices=(0, 1)), "low", Dimension("x", choices=(0, 1))),
        (DECAY, "high", Dimension("hparams.weight_decay", 0.0, 0.2)),
        (DECAY, "low", DECAY),
        (Dimension("x", -1.0, 1.0), "low", Dimension("x", -3.0, 1.0)),
        (Dimension("x", 2, 8, log=True, integer=True), "low", Dimension("x", 1, 8, log=True, integer=True)),
        (Dimension("x", 1, 8, log=True, integer=True), "low", Dimension("x", 1, 8, log=True, integer=True)),
    ],
)
def test_a_range_grows_beyond_the_end_that_is_best(dimension: Dimension, edge: str, wider: Dimension) -> None:
    assert widened(dimension, edge) == wider
    wider.coordinate_distribution()  # Optuna takes it


@pytest.mark.parametrize("edge", ["low", "high"])
@pytest.mark.parametrize("dimension", [RATE, RANK, DECAY, ROWS])
def test_a_wider_range_fits_what_the_storage_holds(dimension: Dimension, edge: str) -> None:
    from optuna.distributions import check_distribution_compatibility

    check_distribution_compatibility(dimension.value_distribution(), widened(dimension, edge).value_distribution())


@pytest.mark.parametrize(
    "dimension",
    [
        RATE,
        Dimension(LR, 1.23456789e-5, 0.0123456789, log=True),
        RANK,
        DECAY,
        ROWS,
        NAMES,
        Dimension("hparams.weight_decay", 1e-3, 0.1, log=True),
        Dimension("hparams.weight_decay", choices=(0.0, 0.1)),
        Dimension("hparams.optimizer", choices=("AdamW", "a, b", "it's", "")),
        Dimension("method.peft.use_rslora", choices=(True, False)),
    ],
    ids=describe_range,
)
def test_a_described_range_can_be_typed_and_is_the_same(dimension: Dimension) -> None:
    job = build_config(compose_config(["method=lora", "hparams.lr_scale=1"]))
    typed = f"{dimension.key}={describe_range(dimension)}"
    found = build_space(job, read_request(parse_command_line([typed]).overrides, None))
    again = next(other for other in found if other.key == dimension.key)
    kept = ("key", "low", "high", "log", "integer", "choices")
    assert [getattr(again, name) for name in kept] == [getattr(dimension, name) for name in kept]


@given(
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**9), 10**9),
        st.floats(allow_nan=False),
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=8),
        st.lists(st.integers(0, 9), max_size=3),
        st.sampled_from(["null", "True", "1e-3", "a,b", "it's", "\\", "\\'", "x\\\\'", "glob(*)", "[a", "a=b", "A¹"]),
    )
)
def test_an_override_is_read_back_as_its_value(value: Any) -> None:
    override = OverridesParser.create().parse_override(as_overrides({"a.b": value})[0])
    assert override.key_or_group == "a.b"
    read = getattr(override.value(), "text", override.value())
    assert (type(read), read) == (type(value), value)


def test_the_share_of_a_value_is_measured_on_its_scale() -> None:
    assert RATE.share_of(10**-3.5) == pytest.approx(0.5)
    assert DECAY.share_of(0.05) == pytest.approx(0.5)
    assert RANK.share_of(8) == pytest.approx(1 / 3)
    assert math.isclose(Dimension("x", choices=(8,)).share_of(8), 0)
