"""Jobs from an MLflow store: runs in pages, no call for each run. The files of a local store are read where they lie,
so that its numbers are those of the jobs' folders."""

from __future__ import annotations

import ast
import contextlib
import gc
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from peftsweep.errors import DataError, Problem, TrackingError
from peftsweep.records.files import RESULT_FILE, Files, FolderFiles
from peftsweep.records.jobs import Job, Loaded, finite, read_job
from peftsweep.records.metrics import find_metric
from peftsweep.records.redact import redact_forms
from peftsweep.records.results import JobResult
from peftsweep.records.studies import Study

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE_RUNS = 1000
SQLITE_PREFIX = "sqlite:///"
STUDY_STAGE = "study"  # the stage of a study's own run, under which its jobs are nested
TAG, BEST, ENVIRONMENT, INTERVAL = "peftsweep.", "peftsweep.best.", "peftsweep.environment.", "peftsweep.interval95."
DEFAULT_METRIC = "study/default/"
QUIET = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_LOGGING_LEVEL": "WARNING", "MLFLOW_DISABLE_TELEMETRY": "true"}


@dataclass(frozen=True)
class RunFiles:
    """Artifacts of a run on a server or in a cloud: fetched when they are asked for."""

    uri: str
    run_id: str

    def path(self, name: str) -> Path | None:
        return _fetch(self.uri, self.run_id, name)


@lru_cache(maxsize=4096)
def _fetch(uri: str, run_id: str, name: str) -> Path | None:
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
    with _explained(uri), _no_garbage_collection():
        for run in _runs(uri):
            tags = run.data.tags
            if tags.get(f"{TAG}stage") == STUDY_STAGE:
                studies |= _study(run)
            elif f"{TAG}method" in tags and f"{TAG}status" in tags:
                try:
                    jobs.append(_job(uri, run))
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
    uri = source if "://" in source else f"{SQLITE_PREFIX}{Path(source).absolute()}"
    path = uri.removeprefix(SQLITE_PREFIX).partition("?")[0]
    if uri.startswith(SQLITE_PREFIX) and not Path(path).is_file():
        raise DataError(Problem("the MLflow database must exist", path, "runs", "Run a job first, or name another."))
    return uri


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # drivers and servers bring exceptions of their own
        told = " ".join(str(error).split()).partition(" [SQL:")[0]  # which statement it was helps nobody here
        reason = redact_forms(told)[:300] or type(error).__name__
        raise TrackingError(Problem(f"the MLflow store must be readable ({reason})", redact_forms(uri))) from error


def _runs(uri: str) -> Iterator[Run]:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = _experiments(client)
    token: str | None = None
    while experiments:
        page = client.search_runs(experiments, max_results=PAGE_RUNS, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _experiments(client: MlflowClient) -> list[str]:
    found: list[str] = []
    token: str | None = None
    while True:
        page = client.search_experiments(page_token=token)
        found += [experiment.experiment_id for experiment in page]
        token = page.token
        if not token:
            return found


def _study(run: Run) -> dict[str, Study]:
    """What a study's run says its trials were judged by, and its best settings."""
    tags = run.data.tags
    best = {key.removeprefix(BEST): _parsed(value) for key, value in tags.items() if key.startswith(BEST)}
    name = tags.get(f"{TAG}study")
    has_default = any(key.startswith(DEFAULT_METRIC) for key in run.data.metrics)
    objective, constraint = tags.get(f"{TAG}objective"), tags.get(f"{TAG}constraint") or None
    return {name: Study(name, objective, constraint, best=best or None, has_default_score=has_default)} if name else {}


def _job(uri: str, run: Run) -> Job:
    """From its result.json where that lies on this machine, else from what MLflow's tables hold."""
    folder = _local_folder(run.info.artifact_uri)
    name = (run.info.run_name or "").rpartition(" ")[2]
    location = f"MLflow run {run.info.run_id}"
    if folder and (folder / RESULT_FILE).exists():
        return Job(read_job(folder).result, name, location, FolderFiles(folder))
    files: Files = FolderFiles(folder) if folder else RunFiles(uri, run.info.run_id)
    return Job(_result(run), name, location, files)


def _local_folder(artifact_uri: str | None) -> Path | None:
    parts = urlsplit(artifact_uri or "")
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") and parts.path else None


def _result(run: Run) -> JobResult:
    """What tags, parameters, metrics and datasets tell of a job. Raises DataError if they describe none."""
    tags = run.data.tags
    own = {key: tags.get(f"{TAG}{key}") for key in ("status", "method", "model", "task", "seed", "stage")}
    try:
        return JobResult(
            **{**own, "seed": int(own["seed"] or 0)},  # type: ignore[arg-type]
            study=tags.get(f"{TAG}study"),
            cause=tags.get(f"{TAG}cause"),
            metrics=_metrics(run.data.metrics),
            intervals=_intervals(tags),
            task_version=int(tags.get(f"{TAG}task_version", "1")),
            test_items=tags.get(f"{TAG}test_items"),
            model_revision=tags.get(f"{TAG}model_revision"),
            datasets=_datasets(run),
            config=_nested({key: _parsed(value) for key, value in run.data.params.items()}),
            started_at=_in_iso(run.info.start_time),
            environment={k.removeprefix(ENVIRONMENT): v for k, v in tags.items() if k.startswith(ENVIRONMENT)},
            mlflow_run_id=run.info.run_id,
        )
    except ValueError as error:
        raise DataError(Problem(f"a run of a job must describe it ({error})", run.info.run_id)) from None


def _in_iso(milliseconds: int | None) -> str:
    return "" if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()


def _metrics(values: Mapping[str, float]) -> dict[str, float]:
    rows = {key: find_metric(key) for key in values}
    return finite({key: value for key, value in values.items() if (row := rows[key]) and not row.by_step_only})


def _intervals(tags: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    found = {}
    for key, text in tags.items():
        if key.startswith(INTERVAL):
            low, _, high = text.partition(" to ")
            found[key.removeprefix(INTERVAL)] = (float(low), float(high))
    return found


def _datasets(run: Run) -> list[dict[str, Any]]:
    inputs: Sequence[Any] = run.inputs.dataset_inputs if run.inputs else ()
    return [
        {"name": each.dataset.name, "digest": each.dataset.digest, "split": tag.value}
        for each in inputs
        for tag in each.tags
        if tag.key == "mlflow.data.context"
    ]


@lru_cache(maxsize=65536)
def _parsed(value: str) -> Any:
    """MLflow keeps settings as text, as Python writes them."""
    with contextlib.suppress(ValueError):
        return json.loads(value)
    if value.startswith(("[", "{")):
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(value)
    return {"None": None, "True": True, "False": False}.get(value, value)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"hparams.lr": 0.1} as {"hparams": {"lr": 0.1}}."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, last = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                break
        else:
            place[last] = value
    return nested
