"""Where the jobs of a report are: a sweep's folder, any folder that holds jobs, or an MLflow store; and which runs of
MLflow the report belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from peftsweep.errors import ConfigError, DataError, Problem
from peftsweep.records.files import OUTPUTS, PUBLISHED_FOLDER, find_sweep, sweep_folders
from peftsweep.records.jobs import OWN, Job, Loaded, load_folder
from peftsweep.tracking.reading import load_runs


def find_source(sweep: str | None, runs: str | None) -> tuple[str, str]:
    """Where to read jobs, and what to call the report: the sweep of this name, the folder or store, or the last sweep.

    Raises:
        ConfigError: both were asked for.
        DataError: there is no such sweep (see `find_sweep`), or none at all.
    """
    if sweep and runs:
        raise ConfigError(Problem("only one of sweep and runs can be reported", f"sweep={sweep} runs={runs}"))
    if runs:
        return runs, "mlflow" if "://" in runs else Path(runs).resolve().stem
    if sweep:
        folder = find_sweep(sweep)
        return str(folder), folder.resolve().name
    if sweeps := sweep_folders():
        return str(sweeps[-1]), sweeps[-1].name
    if OUTPUTS.is_dir():
        return str(OUTPUTS), "all"
    rule = "a report needs jobs, and there is no folder outputs/ here"
    raise DataError(Problem(rule, str(Path.cwd()), fix="Run a job or a sweep first, or name a folder: runs=<folder>."))


def load_jobs(source: str | Path) -> Loaded:
    """Read every finished job of a source: a folder, a MLflow tracking URI, or the file of a SQLite store.

    Both tell the same numbers. Metrics that are not finite count as not measured.

    Raises:
        DataError: nothing is there, or no job that can be read.
        TrackingError: the MLflow store can't be read.
    """
    text = str(source)
    loaded = load_runs(text) if is_store(text) else load_folder(Path(text))
    if not loaded.jobs:
        rule = "a report needs at least one finished job that can be read"
        fix = " ".join(loaded.unreadable[:3]) or "Run a job first, or name another folder or store."
        raise DataError(Problem(rule, text, "runs", fix))
    return loaded


def add_published(loaded: Loaded) -> Loaded:
    """Also the imported results of the reference benchmark that are of a task and model of one's own jobs, once."""
    own = {(job.result.task, job.result.model) for job in loaded.jobs if job.origin == OWN}
    if not own or not PUBLISHED_FOLDER.is_dir():
        return loaded
    known = {_identity(job) for job in loaded.jobs if job.origin != OWN}
    found = load_folder(PUBLISHED_FOLDER)
    jobs = [job for job in found.jobs if (job.result.task, job.result.model) in own and _identity(job) not in known]
    unreadable = [reason for reason in found.unreadable if reason not in loaded.unreadable]
    return replace(loaded, jobs=(*loaded.jobs, *jobs), unreadable=(*loaded.unreadable, *unreadable))


def _identity(job: Job) -> tuple[str, str, str]:
    return job.result.task, job.result.model, job.result.method


def is_store(source: str) -> bool:
    """Whether a source is an MLflow store, by its address or as the file of a SQLite database."""
    return "://" in source or source.endswith(".db")


@dataclass(frozen=True)
class Destination:
    """studies: by name, the tags that tell each one's run from others. uri: of the store, None for the default."""

    studies: Mapping[str, Mapping[str, str]]
    uri: str | None


def find_destination(loaded: Loaded, source: str) -> Destination | None:
    """None for several sweeps, a part of one, single jobs, or jobs that were not tracked.

    source: what was loaded, as `load_jobs` takes it.
    """
    names = {job.result.study for job in loaded.jobs}
    sweeps = {name.rpartition("/")[0] for name in loaded.studies}
    if len(sweeps) != 1 or not names <= loaded.studies.keys():
        return None
    studies = {
        job.result.study: {"method": job.result.method, "model": job.result.model, "task": job.result.task}
        for job in loaded.jobs
        if job.result.study
    }
    if is_store(source):
        return Destination(studies, source if "://" in source else f"sqlite:///{source}")
    tracking = loaded.jobs[0].result.config.get("tracking") or {}
    return Destination(studies, tracking.get("uri")) if tracking.get("enabled", True) else None
