"""Jobs from an MLflow store: runs in pages, no call for each run. The files of a local store are read where they lie,
so that its numbers are those of the jobs' folders."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsweep.errors import DataError, Problem
from peftsweep.records.files import RESULT_FILE, existing_file
from peftsweep.records.jobs import Job, Loaded, read_result
from peftsweep.records.mlflow_format import (
    STAGE_TAG,
    STATUS_TAG,
    STUDY_STAGE,
    TAG,
    read_items,
    read_record,
    read_study,
    read_tables,
)
from peftsweep.records.redact import redact_forms
from peftsweep.records.studies import Study
from peftsweep.tracking.store import (
    SQLITE_PREFIX,
    connect,
    explained,
    local_folder,
    resolve_uri,
    search_runs,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

MOST_MISSES = 3  # result.json files in a row that a store did not give


@lru_cache(maxsize=4096)
def _fetch(uri: str, run_id: str, name: str) -> Path | None:
    """An artifact of a run on a server or in a cloud; None if there is none."""
    from mlflow.artifacts import download_artifacts

    with contextlib.suppress(Exception):  # an artifact that is not there raises what its kind of store pleases
        return Path(download_artifacts(run_id=run_id, artifact_path=name, tracking_uri=uri))
    return None


def load_runs(source: str) -> Loaded:
    """Every ended job of all experiments of a store.

    source: a tracking URI, or the file of a SQLite store.

    Raises:
        DataError: the SQLite file does not exist.
        TrackingError: the store can't be read, or nobody answers.
    """
    uri = _checked_uri(source)
    jobs: list[Job] = []
    unreadable: list[str] = []
    studies: dict[str, Study] = {}
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # seconds; a page of runs is long
    reader = _Reader(uri)
    problem = Problem("the MLflow store must be readable", redact_forms(uri))
    with explained(problem, may_come_back=False), _no_garbage_collection():
        for run in search_runs(connect(uri)):
            tags = run.data.tags
            if tags.get(STAGE_TAG) == STUDY_STAGE:
                if study := read_study(tags, run.data.metrics):
                    studies[study.name] = study
            elif f"{TAG}method" in tags and STATUS_TAG in tags:
                try:
                    jobs.append(reader.job(run))
                except DataError as error:
                    unreadable.append(str(error))
    return Loaded(redact_forms(source), tuple(jobs), tuple(unreadable), studies)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """SQLAlchemy makes a hundred objects for each run; looking for cycles among them takes as long as reading them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _checked_uri(source: str) -> str:
    """MLflow would make a database that does not exist."""
    uri = resolve_uri(source if "://" in source else f"{SQLITE_PREFIX}{source}")
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise DataError(
            Problem("the MLflow database must exist", str(path), "runs", "Run a job first, or name another.")
        )
    return uri


class _Reader:
    """Makes jobs of runs: from a run's record, else, of an older run, from its result.json, else from MLflow's tables.

    An artifact is fetched for older runs alone; a store that does not answer for several of them is asked no more.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._misses = 0

    def job(self, run: Run) -> Job:
        """Raises DataError: the run describes no job."""
        tags, metrics, run_id = run.data.tags, run.data.metrics, run.info.run_id
        folder = local_folder(run.info.artifact_uri)
        file = partial(existing_file, folder) if folder else partial(_fetch, self._uri, run_id)
        name, path = (run.info.run_name or "").rpartition(" ")[2], None
        try:
            if found := read_record(tags, metrics):
                result, name = found
            else:
                if self._misses < MOST_MISSES:
                    path = file(RESULT_FILE)
                    self._misses = 0 if path or folder else self._misses + 1
                tables = tags, run.data.params, metrics, _datasets(run), run.info.start_time
                result = read_result(path) if path else replace(read_tables(*tables), mlflow_run_id=run_id)
        except ValueError as error:
            raise DataError(Problem(f"a run of a job must describe it ({error})", run_id)) from None
        return Job(result, name, f"MLflow run {run_id}", file, read_items(tags))


def _datasets(run: Run) -> list[dict[str, Any]]:
    inputs: Sequence[Any] = run.inputs.dataset_inputs if run.inputs else ()
    return [
        {"name": each.dataset.name, "digest": each.dataset.digest, "split": tag.value}
        for each in inputs
        for tag in each.tags
        if tag.key == "mlflow.data.context"
    ]
