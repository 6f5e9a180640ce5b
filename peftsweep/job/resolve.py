"""The last step from settings to a job: checked, plain, an experiment's folder followed, other questions asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from peftsweep.config.check import COMPOSE_ERRORS, check_and_build, first_lines
from peftsweep.config.compose import CommandLine, compose_config, parse_command_line
from peftsweep.config.schema import JobConfig
from peftsweep.errors import ConfigError, Problem

SETTABLE = ("task", "hparams.eval_batch_size")  # of a job that was trained: what is asked, and how many at once


def resolve_job(config: DictConfig, overrides: Iterable[str]) -> JobConfig:
    """The job of a composed configuration. overrides: as typed; they win over what an experiment's folder says.

    Raises ConfigError with all problems; MethodError for an experiment's folder that can't be read.
    """
    problems, job = check_and_build(config)
    if problems or job is None:
        raise ConfigError(*problems)
    if not job.method.path:
        return job
    from peftsweep.exchange.experiments import follow_experiment  # imports torch

    return follow_experiment(job, {text.partition("=")[0].lstrip("+") for text in overrides})


def resolve_questions(stored: Mapping[str, Any], overrides: Sequence[str]) -> JobConfig:
    """The settings of a job as its result holds them, with another task or other settings of it, as typed.

    Raises ConfigError with all problems, and for settings of its training.
    """
    line = parse_command_line(overrides)
    settings: Any = OmegaConf.create(dict(stored))
    for override in line.overrides:
        key = override.key_or_group
        if not any(key == name or key.startswith(f"{name}.") for name in SETTABLE):
            rule = "a trained job can be asked other questions, not trained otherwise"
            fix = f"Settable: {', '.join(SETTABLE)}."
            raise ConfigError(Problem(rule, override.input_line, line.source(key), fix))
        if key == "task":
            settings.task = _task_of(override.input_line, line, settings)
    for override in line.overrides:
        if "." in (key := override.key_or_group):
            OmegaConf.update(settings, key, override.value(), force_add=True)
    problems, config = check_and_build(settings, line)
    if problems or config is None:
        raise ConfigError(*problems)
    return config


def _task_of(choice: str | None, line: CommandLine, settings: DictConfig) -> Any:
    """Another task's settings, as its YAML has them for the job's model."""
    try:
        composed = compose_config([f"model={settings.model.name}", str(choice)], line.config_dir)
        return OmegaConf.to_container(composed.task, resolve=True)
    except COMPOSE_ERRORS as error:
        problem = Problem(f"the task must compose ({first_lines(error)})", choice, line.source("task"))
        raise ConfigError(problem) from error
