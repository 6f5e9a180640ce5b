"""What a fair sweep searches, of every method in conf/: what was published is in it, and the scale is right."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from optuna.distributions import FloatDistribution

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import JobConfig, MethodConfig
from peftsweep.methods.catalog import method_files, read_method_file
from peftsweep.records.space import CAPACITY, LR, Dimension, Space, defaults_of
from peftsweep.sweeps.protocol.request import Request, build_space

NOTHING_TYPED = Request((), {}, ())


@cache
def methods() -> dict[str, MethodConfig]:
    return {name: read_method_file(path) for name, path in method_files().items()}


@cache
def spaces() -> dict[str, Space]:
    """By method, on the model that the published learning rates are for."""
    job = build_config(compose_config(["hparams.lr_scale=1"]))
    return {name: build_space(with_method(job, method), NOTHING_TYPED) for name, method in methods().items()}


def with_method(job: JobConfig, method: MethodConfig) -> JobConfig:
    return replace(job, method=method, hparams=replace(job.hparams, lr=method.lr))


def dimensions(key: str) -> dict[str, Dimension]:
    """Of the methods that have one."""
    return {name: found for name, space in spaces().items() for found in space if found.key == key}


def test_methods_are_found() -> None:
    assert len(spaces()) > 45


def test_the_learning_rate_of_every_method_is_searched_on_a_log_scale() -> None:
    scales = {name: found.coordinate_distribution() for name, found in dimensions(LR).items()}
    assert scales.keys() == spaces().keys()
    assert [name for name, scale in scales.items() if not (isinstance(scale, FloatDistribution) and scale.log)] == []


def test_the_range_of_the_rate_is_wide() -> None:
    ranges = {name: (found.low, found.high) for name, found in dimensions(LR).items()}
    assert [name for name, (low, high) in ranges.items() if not (low and high and high / low >= 100)] == []


def test_the_published_default_is_in_the_space_as_it_is() -> None:
    published = {name: {LR: method.lr, CAPACITY: method.capacity} for name, method in methods().items()}
    expected = {name: {found.key: published[name][found.key] for found in space} for name, space in spaces().items()}
    assert {name: defaults_of(space) for name, space in spaces().items()} == expected


def test_sizes_rise_and_leave_a_choice() -> None:
    sizes = dimensions(CAPACITY)
    assert [name for name, found in sizes.items() if not (found.is_ordered and len(found.choices) > 1)] == []


def test_a_size_is_searched_where_there_is_a_knob() -> None:
    assert set(dimensions(CAPACITY)) == {name for name, method in methods().items() if method.capacity is not None}
