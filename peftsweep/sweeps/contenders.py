"""The studies of a sweep as contenders: their best settings, and what these scored with fresh seeds, item by item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from optuna.storages import BaseStorage

from peftsweep.records.files import PREDICTIONS_FILE
from peftsweep.records.jobs import read_item_scores, scores_of_seeds
from peftsweep.records.results import Stage
from peftsweep.sweeps.execution.tickets import stage_trials
from peftsweep.sweeps.protocol.confirmation import Contender, fresh_seeds
from peftsweep.sweeps.protocol.specification import SweepSpec
from peftsweep.sweeps.protocol.trials import Ending, Trial, best_of, current


def read_contenders(spec: SweepSpec, storage: BaseStorage) -> list[Contender]:
    """All studies with a best trial."""
    found = []
    for study in spec.studies:
        tuned, jobs = (current(stage_trials(storage, study, stage)) for stage in (Stage.TUNE, Stage.CONFIRM))
        best = best_of(tuned, spec.objective, spec.limits)
        if best is not None:
            mine = [job for job in jobs if job.terms.params == best.params]
            found.append((study, best, tuned, jobs, list(_items(spec, mine))))
    count = max((len(scores) for *_, items in found for scores in items if scores), default=0)
    return [
        Contender(study, best, tuned, jobs, scores_of_seeds(items, count)) for study, best, tuned, jobs, items in found
    ]


def _items(spec: SweepSpec, jobs: Sequence[Trial]) -> Iterator[list[float] | None]:
    """Of each fresh seed in turn, until one that has not ended, or ended without a result."""
    by_seed = {job.terms.seed: job for job in jobs if job.value is not None or has_diverged(job)}
    for seed in fresh_seeds(spec, max(spec.looks, default=0)):
        if seed not in by_seed:
            return
        yield item_scores(by_seed[seed])


def item_scores(job: Trial) -> list[float] | None:
    """One for each test item; None where the job diverged, so that it answered none."""
    folder = job.outcome.folder if job.outcome else None
    if has_diverged(job):
        return None
    return read_item_scores(Path(folder) / PREDICTIONS_FILE) if folder else []


def has_diverged(job: Trial) -> bool:
    return job.outcome is not None and job.outcome.ending is Ending.DIVERGED
