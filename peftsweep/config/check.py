"""Find everything that is wrong with a configuration, at once, before anything is loaded or downloaded."""

from __future__ import annotations

import dataclasses
import operator
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peftsweep.config.compose import CommandLine, compose_config, group_choices, group_names, needs_more
from peftsweep.config.hints import PUBLISHED_RATES, choice_hint, setting_hint
from peftsweep.config.registry import find_modality, modality_names, schema_of
from peftsweep.config.schema import NEEDED, QUANTISED, JobConfig, MethodConfig
from peftsweep.config.trust import untrusted_settings
from peftsweep.config.units import parse_bytes
from peftsweep.errors import ConfigError, Problem, did_you_mean

HYDRA_GROUPS = ("hydra/sweeper", "hydra/launcher")
# ValueError: what Hydra raises for a group that is given a number, say.
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError)

# Nodes of a dataclass are slow to make. The second kind is written to: each check sets the value that it reads.
_defaults = lru_cache(OmegaConf.structured)
_typed = lru_cache(OmegaConf.structured)


def check_command_line(line: CommandLine) -> list[JobConfig]:
    """Check every configuration that a command line asks for, and answer the jobs; of a sweep, each value of each axis
    once.

    Raises:
        ConfigError: with all problems found.
    """
    if line.config_dir and not line.config_dir.is_dir():
        raise ConfigError(Problem("--config-dir must be an existing folder", str(line.config_dir), "the command line"))
    typed, problems = _split_by_known_group(line.overrides, line.config_dir)
    first = next(_one_axis_at_a_time(typed, line.config_dir))
    composed = _compose(first, line)
    preset, preset_problems = _split_by_known_group(_preset_axes(composed), line.config_dir)
    found = {str(problem): problem for problem in (*_published_rates(line), *problems, *preset_problems)}
    jobs = []
    for overrides in _one_axis_at_a_time([*preset, *typed], line.config_dir):
        problems, job = _check_composed(composed, line) if overrides == first else check_job(overrides, line)
        found |= {str(problem): problem for problem in problems if str(problem) not in found}
        jobs += [job] if job else []
    if found:
        raise ConfigError(*found.values())
    return jobs


def check_job(overrides: Sequence[str], line: CommandLine) -> tuple[list[Problem], JobConfig | None]:
    """All problems of one job's configuration, and the job where it can be built at all."""
    return _check_composed(_compose(overrides, line), line)


def _compose(overrides: Sequence[str], line: CommandLine) -> DictConfig | Problem:
    """The configuration of one job and of Hydra, or why there is none."""
    try:
        return compose_config(overrides, line.config_dir, with_hydra=True)
    except COMPOSE_ERRORS as error:
        return _does_not_compose(error)


def _check_composed(config: DictConfig | Problem, line: CommandLine) -> tuple[list[Problem], JobConfig | None]:
    if isinstance(config, Problem):
        return [config], None
    try:
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        problems, job = check_and_build(own, line)
        return [*untrusted_settings(config, line), *problems], job
    except COMPOSE_ERRORS as error:
        return [_does_not_compose(error)], None


def _does_not_compose(error: Exception) -> Problem:
    return Problem(f"the configuration must compose ({first_lines(error)})")


def _published_rates(line: CommandLine) -> Iterator[Problem]:
    """A rate is typed as the one that trains. What a method's YAML has is multiplied by hparams.lr_scale."""
    for key, form in zip(PUBLISHED_RATES, ("{}", "interval({})"), strict=True):
        if text := line.typed(key):
            rule = f"{key} is as published, for large models; what trains is hparams.lr"
            yield Problem(rule, text, "the command line", f"Type hparams.lr={form.format(text.strip('[]'))}.")


def _preset_axes(config: DictConfig | Problem) -> list[Override]:
    """What `hydra.sweeper.params` of a YAML adds to each job of a sweep, to be checked like typed overrides."""
    if isinstance(config, Problem):
        return []
    try:
        params = OmegaConf.select(config, "hydra.sweeper.params") or {}
        return OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    except COMPOSE_ERRORS:
        return []


def check_and_build(config: DictConfig, line: CommandLine | None = None) -> tuple[list[Problem], JobConfig | None]:
    """Problems of a composed configuration (unknown keys, types, bounds, what doesn't go together), and the job that
    it describes where it can be built at all."""
    line = line or CommandLine(())
    try:
        schema = schema_of(config)
    except ConfigError as error:
        return [replace(p, source=line.source(p.source) or p.source) for p in error.problems], None
    hint = partial(setting_hint, line=line, config=config, schema=schema)
    problems = list(schema_problems(config, schema, "", line, hint))
    if mismatch := _modality_problem(config):
        # A task's settings that follow the model's can't resolve then, which would only hide the cause.
        return [mismatch, *(problem for problem in problems if "must resolve" not in problem.rule)], None
    if problems:
        return problems, None
    job = build_config(config)
    return list(_mismatches(job)), job


def build_config(config: DictConfig) -> JobConfig:
    """The checked configuration as plain dataclasses; interpolations resolved."""
    merged = OmegaConf.merge(_defaults(schema_of(config)), config)
    return typing.cast(JobConfig, OmegaConf.to_object(merged))


def first_lines(error: Exception) -> str:
    return " ".join(str(error).split("\n")[:2]).strip()


def _split_by_known_group(
    overrides: Sequence[Override], config_dir: Path | None
) -> tuple[list[Override], list[Problem]]:
    """Set aside overrides that name no option of their group, so that the rest can still be checked."""
    known, problems = [], []
    groups = group_names(config_dir)
    for override in overrides:
        group = override.key_or_group
        choices = group_choices(group, config_dir) if group in groups or group in HYDRA_GROUPS else ()
        wrong = [value for value in _group_values(override) if value not in choices] if choices else []
        for value in wrong:
            fix = choice_hint(group, value, choices, config_dir)
            problems.append(Problem(f"there is no {group} of this name", value, "the command line", fix))
        if not wrong:
            known.append(override)
    return known, problems


def _group_values(override: Override) -> list[str]:
    """Names that an override chooses from its group; none for a deletion or a pattern, which can't be misspelt."""
    value = override.value()
    if override.is_delete() or isinstance(value, Glob):
        return []
    if override.is_choice_sweep():
        return [str(choice) for choice in override.sweep_string_iterator()]
    return ["null" if name is None else str(name) for name in (value if isinstance(value, list) else [value])]


def _one_axis_at_a_time(overrides: Sequence[Override], config_dir: Path | None) -> Iterator[list[str]]:
    """The first value of every axis together, then each further value alone: enough to meet every value."""
    axes = [values for override in overrides if (values := _axis(override, config_dir))]
    first = [values[0] for values in axes]
    yield first
    for position, values in enumerate(axes):
        for value in values[1:]:
            yield [*first[:position], value, *first[position + 1 :]]


def _axis(override: Override, config_dir: Path | None) -> list[str]:
    """An override as one or, in a sweep, several plain ones.

    Settings are forced in, where Hydra would stop at the first that it doesn't know, so that all of them are told.
    """
    if override.is_delete():
        return [str(override.input_line)]
    key, name = override.get_key_element(), override.key_or_group
    if "/" not in name and not name.startswith("hydra") and name not in group_names(config_dir):
        key = f"++{key.lstrip('+')}"
    return [f"{key}={value}" for value in axis_values(override, config_dir)]


def axis_values(override: Override, config_dir: Path | None) -> Iterator[str]:
    """Every value of an override, as it would be typed alone; of an interval, which has no end of them, its two ends.

    A pattern leaves out what can't be chosen without giving more, as `method=from_file` needs `method.path`.
    """
    value = override.value()
    if isinstance(value, Glob):
        group = override.key_or_group
        names = value.filter(list(group_choices(group, config_dir)))
        yield from (name for name in names if not needs_more(group, name, config_dir))
    elif isinstance(value, IntervalSweep):
        yield from (f"{end:.12g}" for end in (value.start, value.end) if isinstance(end, (int, float)))
    elif override.is_discrete_sweep():
        yield from override.sweep_string_iterator()
    elif not override.is_sweep_override():
        yield override.get_value_element_as_str()


def schema_problems(
    node: Any, schema: type, path: str, line: CommandLine, hint: Callable[[str, Sequence[str]], str] = did_you_mean
) -> Iterator[Problem]:
    """Unknown keys, types and bounds of a node of OmegaConf's. path: its dotted key with the dot; line: what was
    typed; hint: what to say of an unknown key, given those beside it."""
    hints = typing.get_type_hints(schema)
    known = {field.name: field for field in dataclasses.fields(schema)}
    for key in node:
        full = f"{path}{key}"
        if key not in known:
            options = [f"{path}{name}" for name in known]
            yield Problem("there is no such setting", full, line.source(full), hint(full, options))
            continue
        try:
            value = NEEDED if OmegaConf.is_missing(node, key) else node[key]
        except OmegaConfBaseException as error:
            yield Problem(f"{full} must resolve ({first_lines(error)})")
            continue
        types_of_key = (option for option in _options(hints[key]) if isinstance(option, type))
        nested = next((option for option in types_of_key if dataclasses.is_dataclass(option)), None)
        if nested and OmegaConf.is_dict(value):
            yield from schema_problems(value, nested, f"{full}.", line, hint)
        elif value == NEEDED:
            yield Problem(f"{full} must be given", fix=f"Add {full}=<value> to the command line.")
        else:
            yield from _value_problems(known[key], hints[key], schema, value, full, line)


def _options(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _value_problems(
    field: dataclasses.Field[Any], hint: Any, schema: type, value: Any, full: str, line: CommandLine
) -> Iterator[Problem]:
    source = line.source(full)
    try:
        typed = _typed(schema)
        typed[field.name] = value
        value = typed[field.name]
    except OmegaConfBaseException:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
        wanted = " or ".join(names.get(option, str(option)) for option in _options(hint))
        given = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        yield Problem(f"{full} must be {wanted}", given, source)
        return
    bounds = field.metadata
    choices = bounds.get("choices")
    if choices and value not in choices:
        rule = f"{full} must be one of {', '.join(choices)}"
        yield Problem(rule, value, source, choice_hint(full, str(value), choices))
    if value is None or isinstance(value, str):
        return
    for key, words, holds in (
        ("low", "at least", operator.ge),
        ("high", "at most", operator.le),
        ("above", "above", operator.gt),
    ):
        if bounds.get(key) is not None and not holds(value, bounds[key]):
            yield Problem(f"{full} must be {words} {bounds[key]}", value, source)


def _modality_problem(config: DictConfig) -> Problem | None:
    name, wanted, given = (OmegaConf.select(config, key) for key in ("task.name", "task.modality", "model.modality"))
    if wanted == given:
        return None
    fix = f"Choose another model, or {', '.join(f'task={name}' for name in find_modality(given).tasks)}."
    value = f"{OmegaConf.select(config, 'model.name')}, {given}"
    return Problem(f"task {name} needs a model of modality {wanted}", value, fix=fix)


def _mismatches(config: JobConfig) -> Iterator[Problem]:
    model, method = config.model, config.method
    if model.dtype in QUANTISED and method.peft_type is None:
        rule = "full fine-tuning needs trainable base weights"
        yield Problem(rule, model.dtype, "model.dtype", "Use bfloat16 or float32.")
    if model.dtype == "float16" and (method.peft_type is None or not config.hparams.adapter_float32):
        rule = "weights that are trained must be wider than float16"
        yield Problem(rule, model.dtype, "model.dtype", "Use bfloat16, or hparams.adapter_float32=true for an adapter.")
    if problem := modality_problem(method):
        yield problem
    elif model.modality not in method.modalities:
        rule = f"method {method.name} can't be put on a model of modality {model.modality}"
        fix = "Its YAML says why. `python -m peftsweep methods` lists what each can do."
        yield Problem(rule, fix=fix)
    yield from find_modality(model.modality).problems(config)
    yield from _parallel_problems(config)
    space = method.search_space
    if len(space.lr) != 2 or not 0 < space.lr[0] < space.lr[1]:
        yield Problem("method.search_space.lr must be [low, high] with 0 < low < high", space.lr)
    if space.capacity is not None and space.capacity != sorted(set(space.capacity)):
        yield Problem("method.search_space.capacity must rise without repeats", space.capacity)
    if config.gpu is not None:
        try:
            parse_bytes(config.gpu, "gpu")
        except ConfigError as error:
            yield from error.problems
    if config.fit and config.gpu is None and config.device == "cpu":
        yield Problem("fit=true needs a card to fit", config.device, "device", "Name its memory: gpu=24GB.")


def _parallel_problems(config: JobConfig) -> Iterator[Problem]:
    """Sizes that belong to another way to be parallel, and what can't be shared out."""
    parallel = config.parallel
    if parallel.offload and parallel.dp_shard_size == 1:
        fix = "Choose parallel=fsdp."
        yield Problem("only the parts of a model wait on the host", True, "parallel.offload", fix)
    if parallel.dp_shard_size > 1 and config.model.dtype == "int8":
        rule = "bitsandbytes keeps more beside an int8 weight than can be shared out among devices"
        yield Problem(rule, "int8", "model.dtype", "Use int4, or parallel=ddp.")
    if parallel.name != "fsdp" and parallel.dp_shard_size > 1:
        fix = "Choose parallel=fsdp, or parallel.dp_replicate_size for whole copies."
        yield Problem(
            "weights are shared out by parallel=fsdp alone", parallel.dp_shard_size, "parallel.dp_shard_size", fix
        )
    if parallel.name == "none" and parallel.dp_replicate_size > 1:
        rule = "copies of a model need a way to be parallel"
        yield Problem(rule, parallel.dp_replicate_size, "parallel.dp_replicate_size", "Choose parallel=ddp or fsdp.")
    if parallel.name != "none" and parallel.ranks == 1:
        fix = "Give parallel.dp_shard_size=2 or more (fsdp), or parallel.dp_replicate_size=2 or more (ddp)."
        yield Problem(f"parallel={parallel.name} needs two devices or more", parallel.ranks, "parallel", fix)


def modality_problem(method: MethodConfig) -> Problem | None:
    """No method serves models that its YAML doesn't name."""
    known = modality_names()
    unknown = next((name for name in method.modalities if name not in known), None)
    if method.modalities and unknown is None:
        return None
    rule = f"method {method.name} must name the modalities that it serves: {' or '.join(known)}"
    fix = "Write `modalities: [text]`, or more of them, in its YAML."
    return Problem(rule, unknown, "method.modalities", fix)
