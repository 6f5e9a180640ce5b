"""Finished jobs, from wherever they are: a sweep's folder, any folder that holds jobs, or an MLflow store."""

from __future__ import annotations

from pathlib import Path

from peftsweep.errors import DataError, Problem
from peftsweep.records.jobs import Loaded, load_folder
from peftsweep.tracking.reading import load_runs


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


def is_store(source: str) -> bool:
    """Whether a source is an MLflow store, by its address or as the file of a SQLite database."""
    return "://" in source or source.endswith(".db")
