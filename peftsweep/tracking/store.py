"""Opens the place where runs are kept: a local SQLite file, a database or a tracking server."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from peftsweep.errors import Problem, TrackingError
from peftsweep.records.files import ARTIFACT_FOLDER
from peftsweep.records.metrics import METRICS
from peftsweep.records.mlflow_format import full_tags
from peftsweep.records.redact import redact_forms

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run, RunTag
    from mlflow.store.entities import PagedList

DEFAULT_URI = "sqlite:///outputs/mlflow.db"
SQLITE_PREFIX = "sqlite:///"
PAGE_RUNS = 1000
_SQLITE_MAGIC = b"SQLite format 3\x00"
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_CONNECT_SECONDS = 5.0
_LOCK_SECONDS = 300.0  # creating a fresh database takes MLflow seconds, a minute on a busy machine

# MLflow's own defaults (7 tries of 120 s) would stall a job for minutes when a server hangs.
_ENVIRONMENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


# A view of MLflow's pages that is kept in the experiment: what its "share" button would make.
VIEW = "peftsweep"
# What decides, and what the runs were made with. Few: MLflow orders them by name, and scores come late in the alphabet.
_DECIDING = ("forgetting", "drift", "memory", "training")  # columns of a report's table
_VIEW_COLUMNS = [
    *(f"metrics.`{metric.key}`" for metric in METRICS.values() if metric.is_score or metric.column in _DECIDING),
    *(f"params.`{key}`" for key in ("hparams.lr", "method.capacity", "seed")),
]
EXPERIMENT_TAGS = {
    # MLflow's pages then open on metrics and charts, not on traces of chats.
    "mlflow.experimentKind": "custom_model_development",
    f"mlflow.sharedViewState.{VIEW}": json.dumps({"selectedColumns": _VIEW_COLUMNS}),
}


class UnreachableError(TrackingError):
    """The store may well be right, but nobody answers now."""


@dataclass(frozen=True)
class Store:
    """An open store and the experiment in it that runs go to."""

    client: MlflowClient
    uri: str
    experiment_id: str


def resolve_uri(uri: str | None) -> str:
    """The store to use: the one asked for, else MLFLOW_TRACKING_URI, else a local file; local paths become absolute."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    path = sqlite_path(uri)
    return uri if path is None else SQLITE_PREFIX + str(path) + uri[len(uri.partition("?")[0]) :]


def sqlite_path(uri: str) -> Path | None:
    """Absolute path of the database file, or None for any other kind of store."""
    path = uri.removeprefix(SQLITE_PREFIX).partition("?")[0]
    return Path(path).absolute() if uri.startswith(SQLITE_PREFIX) and path not in {"", ":memory:"} else None


def open_store(uri: str | None, experiment: str) -> Store:
    """Connect, create what is missing (database, experiment), and be safe against others that do so at once.

    Raises:
        UnreachableError: nobody answers at the address.
        TrackingError: the address, the credentials or the database are wrong.
    """
    uri = resolve_uri(uri)
    import_mlflow()
    from mlflow import MlflowClient

    fix = "Give tracking.uri a store that MLflow can write, such as sqlite:///outputs/mlflow.db or http://host:5000."
    problem = Problem("the MLflow store must be usable", redact_forms(uri), "tracking.uri", fix)
    with explained(problem, may_come_back=is_server(uri)), _database_ready(uri):
        client = MlflowClient(uri)
        return Store(client, uri, _experiment_id(client, uri, experiment))


def connect(uri: str) -> MlflowClient:
    """A client for a store that exists, which is left as it is. Raises UnreachableError: a database does not answer."""
    import_mlflow()
    _check_database_answers(uri)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def views(client: MlflowClient, address: str) -> dict[str, str]:
    """Where a server of these runs, at `address`, shows scores and costs side by side: a page for each experiment, by
    name."""
    wanted = f"tags.`mlflow.sharedViewState.{VIEW}` LIKE '%'"
    found = _all_pages(partial(client.search_experiments, filter_string=wanted))
    return {each.name: view_of(address, each.experiment_id) for each in found}


def view_of(address: str, experiment_id: str) -> str:
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}"


def how_to_look(uri: str | None, experiment: str) -> str:
    """What a person opens to see the runs of an experiment: a page of a server, or the command that serves a store."""
    uri = resolve_uri(uri)
    if not is_server(uri):
        return f"python -m peftsweep ui   (store: {redact_forms(uri)})"
    with contextlib.suppress(TrackingError):
        return view_of(redact_forms(uri), open_store(uri, experiment).experiment_id)
    return redact_forms(uri)


def is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in {"http", "https"}


def search_runs(client: MlflowClient, experiment_ids: Sequence[str] | None = None, wanted: str = "") -> Iterator[Run]:
    """The runs that a filter of MLflow's wants, page by page. experiment_ids: None is all experiments."""
    if experiment_ids is None:
        experiment_ids = [each.experiment_id for each in _all_pages(client.search_experiments)]
    if experiment_ids:
        yield from _all_pages(partial(client.search_runs, list(experiment_ids), wanted))


def _all_pages(search: Callable[..., PagedList[Any]]) -> Iterator[Any]:
    token: str | None = ""
    while token is not None:
        page = search(max_results=PAGE_RUNS, page_token=token or None)
        yield from page
        token = page.token or None


def local_folder(artifact_uri: str | None) -> Path | None:
    """Where a run's artifacts lie, if that is on this machine."""
    parts = urlsplit(artifact_uri or "")
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") and parts.path else None


def find_run(store: Store, run_id: str) -> Run | None:
    """A run of this store, or None if it never held it or it was deleted. Raises MlflowException if nobody answers."""
    from mlflow.exceptions import MlflowException

    try:
        run = store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def import_mlflow() -> None:
    """Set quiet and quick defaults, which MLflow reads at import; what the user set stays."""
    for name, value in _ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for each retry; the tracker warns once
    import mlflow  # noqa: F401  (over a second: only when tracking is on)


def is_unreachable(error: BaseException) -> bool:
    """Whether trying another call now would only wait for the same silence."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return bool(error.get_http_status_code() >= 500)  # type: ignore[no-untyped-call]
    return isinstance(error, OSError)


@contextlib.contextmanager
def explained(problem: Problem, *, may_come_back: bool = True) -> Iterator[None]:
    """Raise what MLflow, SQLAlchemy and drivers raise as the two cases that a job tells apart.

    problem: what is wrong where the store refuses. may_come_back: whether silence is a server's, which is waited for.

    Raises:
        UnreachableError: nobody answered.
        TrackingError: MLflow refused, which waiting does not mend.
    """
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # drivers bring exceptions of their own
        if may_come_back and is_unreachable(error):
            rule = f"the MLflow store must answer ({brief(error)})"
            raise UnreachableError(replace(problem, rule=rule, fix="")) from error
        raise TrackingError(replace(problem, rule=f"{problem.rule} ({brief(error)})")) from error


def as_run_tags(tags: Mapping[str, str]) -> list[RunTag]:
    """As a batch takes them, with whole keys, cut, and without secrets."""
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in full_tags(tags).items()]


def milliseconds(unix_seconds: float | None = None) -> int:
    """Since 1970, as MLflow counts time; None is now."""
    return round(1000 * (time.time() if unix_seconds is None else unix_seconds))


def brief(error: BaseException) -> str:
    """One line without secrets: MLflow repeats whole requests, and buries a refused connection under four causes."""
    if is_unreachable(error):
        while cause := error.__cause__ or error.__context__:
            error = cause
    line = " ".join(str(error).split()).partition(" [SQL:")[0]  # which statement it was helps nobody here
    line = redact_forms(line) or type(error).__name__
    return line if len(line) <= 300 else line[:300] + "..."


@contextlib.contextmanager
def _database_ready(uri: str) -> Iterator[None]:
    """Check what would make MLflow retry for 100 s, and let one process at a time create a SQLite database.

    MLflow creates its tables without a lock: two processes that open a fresh file together leave it half-migrated.
    """
    path = sqlite_path(uri)
    if path is None:
        _check_database_answers(uri)
        yield
        return
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS):
        if path.exists():
            with path.open("rb") as stream:
                if stream.read(len(_SQLITE_MAGIC)) not in (b"", _SQLITE_MAGIC):
                    rule = "a sqlite:// store must be an SQLite database"
                    raise TrackingError(Problem(rule, str(path), "tracking.uri"))
        yield


def _check_database_answers(uri: str) -> None:
    address = urlsplit(uri)
    default_port = _DATABASE_PORTS.get(address.scheme.partition("+")[0])
    if default_port is not None and address.hostname is not None:
        with explained(Problem("the database must answer", redact_forms(uri), "tracking.uri")):
            socket.create_connection((address.hostname, address.port or default_port), timeout=_CONNECT_SECONDS).close()


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            # Beside a local database, absolute: MLflow's default would follow the directory of whoever reads.
            path = sqlite_path(uri)
            location = None if path is None else (path.parent / ARTIFACT_FOLDER).as_uri()
            return client.create_experiment(name, location, tags=EXPERIMENT_TAGS)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another process was quicker
    if experiment is None or experiment.lifecycle_stage != "active":
        fix = "Restore it (mlflow experiments restore) or choose another tracking.experiment."
        raise TrackingError(Problem("the experiment must not be deleted", name, "tracking.experiment", fix))
    for key, value in EXPERIMENT_TAGS.items():
        if key not in experiment.tags:  # made by an earlier version, or by hand
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return str(experiment.experiment_id)
