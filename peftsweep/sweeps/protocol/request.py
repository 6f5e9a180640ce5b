"""What a sweep's command line asks for: settings that stay, axes that span the studies, and what is searched in each.

`method=lora,oft` and `method=glob(*)` span studies. `hparams.lr=interval(1e-5,1e-2)`, `range()`, `choice()` and
`tag(log, ...)` are searched within each study. A group or the seed always spans studies, however it is written.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep

from peftsweep.config.check import axis_values
from peftsweep.config.compose import group_names
from peftsweep.config.schema import JobConfig, SweepConfig
from peftsweep.errors import ConfigError, Problem, did_you_mean
from peftsweep.records.space import CAPACITY, LR, Dimension, Space

FAIR_SWEEPER = "hydra/sweeper=fair"
RUN_ALWAYS_DIFFERS = ("seed",)  # more of them is more evidence, nothing to choose the best of


@dataclass(frozen=True)
class Request:
    """A parsed command line. axes: key -> values, in the order typed; searched: overrides with Hydra's sweep syntax."""

    fixed: tuple[str, ...]
    axes: dict[str, tuple[str, ...]]
    searched: tuple[Override, ...]

    def cells(self) -> list[dict[str, str]]:
        """One for each study: key -> value."""
        return [dict(zip(self.axes, point, strict=True)) for point in itertools.product(*self.axes.values())]

    def fixes(self, key: str) -> bool:
        """Whether the user gave a setting one value in each study."""
        return any(text.lstrip("+").partition("=")[0] == key for text in (*self.fixed, *self.axes))


def with_full_sweep_keys(arguments: Sequence[str]) -> list[str]:
    """A fair sweep's own settings may be typed without `hydra.sweeper.`: `n_trials=20 'constraint=memory<=12GB'`."""
    if FAIR_SWEEPER not in arguments:
        return list(arguments)
    own = {field.name for field in dataclasses.fields(SweepConfig)}
    return [_full_sweep_key(text) if "=" in text and re.split("[.=]", text)[0] in own else text for text in arguments]


def _full_sweep_key(text: str) -> str:
    key, _, value = text.partition("=")
    if re.search("[<>]", value) and value[:1] not in ("'", '"'):  # Hydra's grammar wants quotes around it
        value = f"'{value}'"
    adds = "++" if ".kwargs" in key else ""  # arguments of Optuna's classes, which our YAML does not list
    return f"{adds}hydra.sweeper.{key}={value}"


def read_request(overrides: Sequence[Override], config_dir: Path | None) -> Request:
    """Sort the overrides of a command line. Raises ConfigError for an axis without values."""
    fixed, axes, searched, groups = [], {}, [], group_names(config_dir)
    for override in overrides:
        value, key = override.value(), override.key_or_group
        is_list = isinstance(value, Glob) or (isinstance(value, ChoiceSweep) and value.simple_form)
        if override.is_delete() or not override.is_sweep_override():
            fixed.append(str(override.input_line))
        elif is_list or key in groups or key in RUN_ALWAYS_DIFFERS:  # spans studies, however it is written
            axes[override.get_key_element()] = _axis(override, config_dir)
        else:
            searched.append(override)
    return Request(tuple(fixed), axes, tuple(searched))


def _axis(override: Override, config_dir: Path | None) -> tuple[str, ...]:
    if isinstance(override.value(), IntervalSweep):
        rule, fix = "what spans studies must be listed", f"For example: {override.key_or_group}=1,2,3."
        raise ConfigError(Problem(rule, override.input_line, "the command line", fix))
    found = tuple(dict.fromkeys(axis_values(override, config_dir)))
    if not found:
        raise ConfigError(Problem("a sweep needs at least one value", override.input_line, "the command line"))
    return found


def build_space(job: JobConfig, request: Request) -> Space:
    """The search space of one study: its method's own, overridden and extended by the command line.

    A setting that the user gave one value is not searched. Raises ConfigError: nothing is left to search, or a range
    is empty, reversed or of text.
    """
    dimensions = {dimension.key: dimension for dimension in _own_dimensions(job) if not request.fixes(dimension.key)}
    for override in request.searched:
        if override.key_or_group != CAPACITY or job.method.capacity is not None:  # typed for the methods that have it
            dimension = _dimension_of(override, job)
            dimensions[dimension.key] = dimension
    if not dimensions:
        rule = f"a study needs something to search; for {job.method.name} everything has one value"
        fix = "Leave hparams.lr or method.capacity open, or give a range: hparams.lr=interval(1e-5,1e-2)."
        raise ConfigError(Problem(rule, source="the command line", fix=fix))
    return tuple(dimensions.values())


def _own_dimensions(job: JobConfig) -> list[Dimension]:
    scale, space = job.hparams.lr_scale, job.method.search_space
    low, high = (float(f"{end * scale:.12g}") for end in space.lr)
    found = [_with_default(Dimension(LR, low, high, log=True), job.hparams.lr)]
    if space.capacity:
        found.append(_with_default(Dimension(CAPACITY, choices=tuple(space.capacity)), job.method.capacity))
    return found


def _with_default(dimension: Dimension, default: Any) -> Dimension:
    """The published value, or what comes nearest to it in the range."""
    is_number = isinstance(default, (int, float)) and not isinstance(default, bool)
    if is_number and dimension.choices and not dimension.holds(default):
        default = min(dimension.choices, key=lambda c: abs(c - default)) if dimension.is_ordered else None
    elif is_number and dimension.low is not None and dimension.high is not None:
        default = min(max(default, dimension.low), dimension.high)
    return replace(dimension, default=default if dimension.holds(default) else None)


def _dimension_of(override: Override, job: JobConfig) -> Dimension:
    key, sweep = override.key_or_group, override.value()
    default = _setting_of(job, key)
    if isinstance(sweep, IntervalSweep):
        is_log = key == LR or "log" in sweep.tags
        low, high = _ends(override, sweep.start, sweep.end, is_log)
        whole = low.is_integer() and high.is_integer() and isinstance(default, int)
        return _with_default(Dimension(key, low, high, log=is_log, integer=whole), default)
    assert isinstance(sweep, (ChoiceSweep, RangeSweep))
    choices = _plain_choices(sweep.range() if isinstance(sweep, RangeSweep) else sweep.list)
    if not choices:
        raise ConfigError(Problem("a search space must not be empty", override.input_line, "the command line"))
    return _with_default(Dimension(key, choices=choices), default)


def _ends(override: Override, low: Any, high: Any, is_log: bool) -> tuple[float, float]:
    problem = None
    if not all(isinstance(end, (int, float)) and math.isfinite(end) for end in (low, high)):
        problem = "the ends of an interval must be numbers"
    elif not low < high:
        problem = "an interval must be written interval(low, high) with low < high"
    elif is_log and low <= 0:
        problem = "an interval on a log scale must lie above 0"
    if problem:
        raise ConfigError(Problem(problem, override.input_line, "the command line"))
    return float(low), float(high)


def _plain_choices(given: Iterable[Any]) -> tuple[Any, ...]:
    """Values as Python has them, each once; rising where they are numbers, so that neighbours are alike."""
    found: list[Any] = []
    for choice in given:
        value = getattr(choice, "text", choice)
        if value not in found:
            found.append(value)
    is_numeric = all(isinstance(choice, (int, float)) and not isinstance(choice, bool) for choice in found)
    return tuple(sorted(found) if is_numeric else found)


def _setting_of(job: JobConfig, key: str) -> Any:
    """The value that a job has without a search. Raises ConfigError for a key that no job has."""
    value: Any = job
    for part in key.split("."):
        known = list(value) if isinstance(value, dict) else list(vars(value)) if hasattr(value, "__dict__") else []
        if part not in known and isinstance(value, dict):
            return None  # an argument of another library's class, which has its own default
        if part not in known:
            raise ConfigError(Problem("there is no such setting", key, "the command line", did_you_mean(part, known)))
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value
