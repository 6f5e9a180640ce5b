"""What a fair sweep searches, of every method in conf/: what was published is in it, and the scale is right."""

from __future__ import annotations

from functools import cache

import pytest
from optuna.distributions import FloatDistribution

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config, config_folder
from peftsweep.config.schema import JobConfig
from peftsweep.records.space import CAPACITY, LR, Dimension, Space, defaults_of
from peftsweep.sweeps.protocol.request import Request, build_space

# from_file is a placeholder: its method stands in the folder that it points to.
METHODS = sorted(path.stem for path in (config_folder() / "method").glob("*.yaml") if path.stem != "from_file")
NOTHING_TYPED = Request((), {}, ())


@cache
def job(method: str) -> JobConfig:
    """On the model that the published learning rates are for."""
    return build_config(compose_config([f"method={method}", "hparams.lr_scale=1"]))


@cache
def space(method: str) -> Space:
    return build_space(job(method), NOTHING_TYPED)


def dimension(method: str, key: str) -> Dimension | None:
    return next((found for found in space(method) if found.key == key), None)


def test_methods_are_found() -> None:
    assert len(METHODS) > 45


@pytest.mark.parametrize("method", METHODS)
def test_the_learning_rate_is_searched_on_a_log_scale(method: str) -> None:
    found = dimension(method, LR)
    assert found is not None
    distribution = found.coordinate_distribution()
    assert isinstance(distribution, FloatDistribution)
    assert distribution.log


@pytest.mark.parametrize("method", METHODS)
def test_the_range_of_the_rate_is_wide(method: str) -> None:
    found = dimension(method, LR)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.high / found.low >= 100


@pytest.mark.parametrize("method", METHODS)
def test_the_published_default_is_in_the_space_as_it_is(method: str) -> None:
    published = {LR: job(method).method.lr, CAPACITY: job(method).method.capacity}
    assert defaults_of(space(method)) == {found.key: published[found.key] for found in space(method)}


@pytest.mark.parametrize("method", METHODS)
def test_sizes_rise_and_leave_a_choice(method: str) -> None:
    found = dimension(method, CAPACITY)
    if found is not None:
        assert found.is_ordered
        assert len(found.choices) > 1


@pytest.mark.parametrize("method", METHODS)
def test_a_size_is_searched_where_there_is_a_knob(method: str) -> None:
    assert (dimension(method, CAPACITY) is not None) == (job(method).method.capacity is not None)
