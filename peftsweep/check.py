"""Find everything that is wrong with a configuration, at once, before anything is loaded or downloaded."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peftsweep.compose import CommandLine, compose_config, group_choices, group_names
from peftsweep.config import NEEDED, TASKS, JobConfig
from peftsweep.errors import ConfigError, Problem

# Where Hydra may build objects from. A configuration from a stranger must not name any other code.
TRUSTED_TARGETS = ("hydra._internal.core_plugins.", "hydra_plugins.", "hydra.experimental.callbacks.", "peftsweep.")
TRUSTED_LOGGING = ("logging.", "rich.logging.", "colorlog.")
# Settings that run code; a YAML file can't set them.
COMMAND_LINE_ONLY = ("model.trust_remote_code", "task.scorer")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"Choose from: {', '.join(sorted(known))}."


def check_command_line(line: CommandLine) -> None:
    """Check every configuration that a command line asks for; of a sweep, each value of each axis once.

    Raises:
        ConfigError: with all problems found.
    """
    known, problems = _split_by_known_group(line)
    found: dict[str, Problem] = {str(problem): problem for problem in problems}
    for overrides in _one_axis_at_a_time(known):
        for problem in problems_of(overrides, line):
            found.setdefault(str(problem), problem)
    if found:
        raise ConfigError(*found.values())


def problems_of(overrides: Sequence[str], line: CommandLine) -> list[Problem]:
    """All problems of one job's configuration."""
    try:
        config = compose_config(overrides, line.config_dir, with_hydra=True)
        untrusted = list(_untrusted_code(config))
        with_own_keys = OmegaConf.create({key: node for key, node in config._content.items() if key != "hydra"})  # type: ignore[union-attr]
        return untrusted + check_config(with_own_keys, line)
    except (HydraException, OmegaConfBaseException) as error:
        return [Problem(f"the configuration must compose ({_first_lines(error)})")]


def check_config(config: DictConfig, line: CommandLine | None = None) -> list[Problem]:
    """Problems of a composed configuration: unknown keys, types, bounds, and what doesn't go together."""
    line = line or CommandLine(())
    problems = list(_schema_problems(config, schema_of(config), "", line))
    if not problems:
        problems = list(_mismatches(config, line))
    return problems


def schema_of(config: DictConfig) -> type:
    """JobConfig with the task group's own dataclass."""
    task = TASKS.get(str(OmegaConf.select(config, "task.name")))
    return (
        JobConfig
        if task is None
        else dataclasses.make_dataclass(
            "JobConfig", [("task", task, dataclasses.field(default_factory=task))], bases=(JobConfig,)
        )
    )


def build_config(config: DictConfig) -> JobConfig:
    """The checked configuration as plain dataclasses; interpolations resolved."""
    merged = OmegaConf.merge(OmegaConf.structured(schema_of(config)), config)
    return typing.cast(JobConfig, OmegaConf.to_object(merged))


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split("\n")[:2]).strip()


def _split_by_known_group(line: CommandLine) -> tuple[list[Override], list[Problem]]:
    """Set aside overrides that name no option of their group, so that the rest can still be checked."""
    known, problems = [], []
    groups = group_names(line.config_dir)
    for override in line.overrides:
        if override.key_or_group not in groups or override.is_delete():
            known.append(override)
            continue
        choices = group_choices(override.key_or_group, line.config_dir)
        wrong = [value for value in _group_values(override) if value not in choices]
        group = override.key_or_group
        problems += [
            Problem(f"there is no {group} of this name", v, "the command line", did_you_mean(v, choices)) for v in wrong
        ]
        if not wrong:
            known.append(override)
    return known, problems


def _group_values(override: Override) -> list[str]:
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()] if override.is_choice_sweep() else []
    value = override.value()
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _one_axis_at_a_time(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """The first value of every axis together, then each further value alone: enough to meet every value."""
    axes = [list(_axis_values(override)) for override in overrides]
    first = [values[0] for values in axes if values]
    yield first
    for position, values in enumerate(axes):
        for value in values[1:]:
            yield [*first[:position], value, *first[position + 1 :]]


def _axis_values(override: Override) -> Iterator[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        yield _forced(
            override,
            f"{key}={override.get_value_element_as_str()}" if not override.is_delete() else str(override.input_line),
        )
    elif override.is_discrete_sweep():
        for value in override.sweep_string_iterator():
            yield _forced(override, f"{key}={value}")


def _forced(override: Override, text: str) -> str:
    """Add unknown keys instead of letting Hydra stop at the first, so that all of them are told."""
    is_value = (
        override.is_delete() is False
        and "." in override.key_or_group
        and not override.key_or_group.startswith("hydra.")
    )
    return f"++{text.lstrip('+')}" if is_value and not override.is_force_add() else text


def _schema_problems(node: Any, schema: type, path: str, line: CommandLine) -> Iterator[Problem]:
    hints = typing.get_type_hints(schema)
    known = {field.name: field for field in dataclasses.fields(schema)}
    for key in node:
        full = f"{path}{key}"
        if key not in known:
            options = [f"{path}{name}" for name in known]
            yield Problem("there is no such setting", full, line.source(full), did_you_mean(full, options))
            continue
        nested = _dataclass_in(hints[key])
        value = _value(node, key)
        if isinstance(value, Problem):
            yield value
        elif nested and OmegaConf.is_dict(value):
            yield from _schema_problems(value, nested, f"{full}.", line)
        elif value == NEEDED:
            yield Problem(f"{full} must be given", fix=f"Add {full}=<value> to the command line.")
        else:
            yield from _value_problems(known[key], schema, value, full, line)


def _value(node: DictConfig, key: str) -> Any:
    try:
        return NEEDED if OmegaConf.is_missing(node, key) else node[key]
    except OmegaConfBaseException as error:
        return Problem(f"{node._get_full_key(key)} must resolve ({_first_lines(error)})")


def _dataclass_in(hint: Any) -> type | None:
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def _value_problems(
    field: dataclasses.Field[Any], schema: type, value: Any, full: str, line: CommandLine
) -> Iterator[Problem]:
    source = line.source(full)
    try:
        structured = OmegaConf.structured(schema)
        structured[field.name] = value
        value = structured[field.name]
    except OmegaConfBaseException:
        hint = typing.get_type_hints(schema)[field.name]
        yield Problem(f"{full} must be {_type_name(hint)}", _plain(value), source)
        return
    yield from _bound_problems(field.metadata, value, full, source)


def _bound_problems(bounds: typing.Mapping[str, Any], value: Any, full: str, source: str) -> Iterator[Problem]:
    choices = bounds.get("choices")
    if choices and value not in choices:
        yield Problem(f"{full} must be one of {', '.join(choices)}", value, source, did_you_mean(str(value), choices))
    if value is None or isinstance(value, str):
        return
    if bounds.get("low") is not None and not value >= bounds["low"]:
        yield Problem(f"{full} must be at least {bounds['low']}", value, source)
    if bounds.get("high") is not None and not value <= bounds["high"]:
        yield Problem(f"{full} must be at most {bounds['high']}", value, source)
    if bounds.get("above") is not None and not value > bounds["above"]:
        yield Problem(f"{full} must be above {bounds['above']}", value, source)


def _type_name(hint: Any) -> str:
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(names.get(getattr(option, "__name__", ""), str(option)) for option in options)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _mismatches(config: DictConfig, line: CommandLine) -> Iterator[Problem]:
    if config.model.modality != config.task.modality:
        rule = f"task {config.task.name} needs a model of modality {config.task.modality}"
        yield Problem(rule, f"{config.model.name}, {config.model.modality}", fix="Choose another model= or task=.")
    for key in COMMAND_LINE_ONLY:
        if OmegaConf.select(config, key) and not line.source(key):
            yield Problem(
                f"{key} runs code, so only the command line can set it", OmegaConf.select(config, key), "a YAML file"
            )
    yield from _source_problems(config)
    yield from _space_problems(config)
    if config.model.dtype in ("int8", "int4") and config.method.peft_type is None:
        yield Problem(
            "full fine-tuning needs trainable base weights",
            config.model.dtype,
            "model.dtype",
            "Use bfloat16 or float32.",
        )


def _source_problems(config: DictConfig) -> Iterator[Problem]:
    task = config.task
    for key in ("train_files", "test_files", "valid_files"):
        if task[key] is not None and not Path(task[key]).exists():
            yield Problem(f"task.{key} must be an existing file or folder", task[key])
    if task.source == "files" and not (task.train_files and task.test_files):
        yield Problem("task.source=files needs task.train_files and task.test_files")
    if (task.train_files is None) != (task.test_files is None):
        yield Problem("task.train_files and task.test_files go together", task.train_files or task.test_files)
    if task.general_text not in ("auto", "hub", "shipped", "embedded") and not Path(task.general_text).is_file():
        yield Problem("task.general_text must be auto, hub, shipped or an existing jsonl file", task.general_text)


def _space_problems(config: DictConfig) -> Iterator[Problem]:
    lr, capacity = config.method.search_space.lr, config.method.search_space.capacity
    if len(lr) != 2 or not 0 < lr[0] < lr[1]:
        yield Problem("method.search_space.lr must be [low, high] with 0 < low < high", list(lr))
    if capacity is not None and list(capacity) != sorted(set(capacity)):
        yield Problem("method.search_space.capacity must rise without repeats", list(capacity))


def _untrusted_code(node: Any, path: str = "") -> Iterator[Problem]:
    """Every `_target_`, and every class that a logging configuration names, outside the trusted modules."""
    for key in node if OmegaConf.is_dict(node) else range(len(node)):
        if OmegaConf.is_missing(node, key):
            continue
        value = node._get_node(key)
        full = f"{path}{key}"
        if OmegaConf.is_config(value) and not value._is_none() and not value._is_interpolation():
            yield from _untrusted_code(value, f"{full}.")
        elif key == "_target_" and not str(node[key]).startswith(TRUSTED_TARGETS):
            yield Problem(
                "a configuration can't run code outside the trusted modules",
                str(node[key]),
                full,
                f"Trusted: {', '.join(TRUSTED_TARGETS)}.",
            )
        elif (
            path.startswith("hydra.")
            and "logging." in path
            and key in ("class", "()")
            and not str(node[key]).startswith(TRUSTED_LOGGING)
        ):
            yield Problem(
                "a logging configuration can't build objects outside the trusted modules", str(node[key]), full
            )
