"""What can be known to be wrong before any weight is loaded: the data, who judges answers, the optimizer, a
method that can't be shared out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from peftsweep.config.schema import EMBEDDED, HparamsConfig, JobConfig
from peftsweep.errors import ConfigError, PeftsweepError, Problem
from peftsweep.methods.known_sharding import why_not_sharded
from peftsweep.modalities.base import SPLITS, modality_of


def check_jobs(jobs: Iterable[JobConfig], *, hub: bool) -> None:
    """Read what the jobs will read, each thing once; of tuning jobs no test data. hub: also what must be downloaded.

    Raises the first kind of error met (DataError, ConfigError), with all problems.
    """
    checks = {key: check for job in jobs for key, check in _checks(job, hub)}
    errors: list[PeftsweepError] = []
    for check in checks.values():
        try:
            check()
        except PeftsweepError as error:
            errors.append(error)
    if errors:
        told = {str(problem): problem for error in errors for problem in error.problems}
        raise type(errors[0])(*told.values())


def _checks(job: JobConfig, hub: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """By what they are about; data first, as torch takes seconds to import."""
    is_embedded = job.model.id == EMBEDDED
    splits = SPLITS[:2] if job.stage == "tune" else SPLITS
    require = partial(modality_of(job.task).require_data, job.task, embedded_model=is_embedded, splits=splits, hub=hub)
    yield repr((job.task, is_embedded, splits)), require
    hparams = job.hparams
    yield repr((hparams.optimizer, hparams.optimizer_kwargs)), partial(_check_optimizer, hparams)
    if job.parallel.dp_shard_size > 1:
        yield job.method.name, partial(_check_shardable, job.method.name)


def _check_shardable(method: str) -> None:
    if reason := why_not_sharded(method):
        rule, fix = (
            f"a method must train the same where several devices hold a model in parts ({reason})",
            "parallel=ddp",
        )
        raise ConfigError(Problem(rule, method, "method", f"Use {fix}, where each device holds the whole model."))


def _check_optimizer(hparams: HparamsConfig) -> None:
    if (hparams.optimizer, hparams.optimizer_kwargs) == (HparamsConfig.optimizer, {}):
        return
    from peftsweep.methods.optimizers import check_optimizer

    check_optimizer(hparams)
