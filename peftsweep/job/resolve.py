"""The last step from a composed configuration to a job: checked, plain, and an experiment's folder followed."""

from __future__ import annotations

from collections.abc import Iterable

from omegaconf import DictConfig

from peftsweep.config.check import check_and_build
from peftsweep.config.schema import JobConfig
from peftsweep.errors import ConfigError


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
