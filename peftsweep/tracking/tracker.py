"""Writes one job to one MLflow run, by explicit run id and in batches, without ever stopping the job."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from peftsweep.errors import Problem, TrackingError
from peftsweep.records.files import ADAPTER_FOLDER, CONFIG_FILE, IMAGES_FOLDER, PREDICTIONS_FILE, RESULT_FILE
from peftsweep.records.jobs import read_item_scores
from peftsweep.records.mlflow_format import CAUSE_TAG, COMPLETE_TAG, PARENT_TAG, full_tags, params_of, result_tags
from peftsweep.records.pictures import read_picture, stored_samples
from peftsweep.records.redact import redact, redact_forms
from peftsweep.records.results import JobResult, Status
from peftsweep.tracking.store import (
    Store,
    UnreachableError,
    as_run_tags,
    brief,
    explained,
    find_run,
    is_unreachable,
    milliseconds,
    open_store,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

_RUN_STATUS = {
    Status.OK: "FINISHED",
    Status.PRUNED: "FINISHED",
    Status.OOM: "FAILED",
    Status.FAILED: "FAILED",
    Status.INTERRUPTED: "KILLED",
}
_FLUSH_SECONDS = 10.0
_FLUSH_VALUES = 500

_TEXT_ARTIFACTS = (CONFIG_FILE, RESULT_FILE, "job.log", ".hydra/*.yaml")  # redacted on their way out
_DATA_ARTIFACTS = ("*.jsonl", "*.png")  # what the model said, measured or drew: as it is
_PICTURE_FOLDERS = ("images/test", "images/base")  # its samples were logged by step

# A picture of a step as MLflow's image view has it: a file whose name tells key and step.
_LOGGED_PICTURE = re.compile(r"images/(?P<key>[^+%]*)[+%]step[+%](?P<step>\d+)[+%].*\.png")

_log = logging.getLogger(__name__)


class Tracker:
    """Where a job reports to. Every call returns soon and raises nothing that tracking alone is to blame for. Here they
    do nothing."""

    run_id: str | None = None

    def log_step(self, step: int, values: Mapping[str, float], unix_seconds: float | None = None) -> None:
        """Metrics of one optimizer step; kept and sent in batches. unix_seconds: when it happened, None is now."""

    def log_picture(self, key: str, picture: np.ndarray, step: int, unix_seconds: float | None = None) -> None:
        """A picture of one step, uint8 (h, w, 3). key: letters, digits, blanks, dots and dashes."""

    def log_params(self, params: Mapping[str, object], only: Sequence[str] | None = None) -> None:
        """The configuration, nested or flat. A parameter that the run has already keeps its value.

        only: dotted keys of the settings or groups to log, in this order; None is all.
        """

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Bare keys (`method`) get the prefix `peftsweep.`."""

    def log_dataset(self, name: str, split: str, source: str, digest: str, rows: int) -> None:
        """A dataset that the job reads. digest: fingerprint of the rows, at most 36 characters."""

    def log_folder(self, folder: Path, *, adapter: bool) -> None:
        """The files of a job, after result.json is written; adapter: its weights too."""

    def close(self, result: JobResult) -> None:
        """Final metrics and tags, then end the run, whatever the status. The last call."""


class NoTracker(Tracker):
    """Tracking is off, or nobody answered when the job began."""


def open_tracker(
    *,
    uri: str | None,
    experiment: str,
    run_name: str,
    folder: Path,
    tags: Mapping[str, str],
    system_metrics: bool = False,
    run_id: str | None = None,
    parent_run_id: str | None = None,
) -> Tracker:
    """Begin the MLflow run of a job.

    uri: None takes MLFLOW_TRACKING_URI, else a SQLite file under outputs/. folder: the job's own, named in the advice
    to import it later. run_id: continue this run (made by a controller, or of a resumed job) instead of a new one.
    parent_run_id: nest under this run; one that this store lacks is warned about, and the job's run stands alone.
    A server that does not answer is warned about, and the job goes on without it.

    Raises:
        TrackingError: the address, the credentials, the database or run_id are wrong, which waiting does not mend.
    """
    try:
        store = open_store(uri, experiment)
        tags = {**tags, **_parent_tag(store, parent_run_id)}
        if run_id:
            tracker = reopen_run(store, run_id, folder)
        else:
            with explained(Problem("MLflow must take a new run", run_name)):
                run = store.client.create_run(store.experiment_id, run_name=run_name, tags=full_tags(tags))
            tracker = MlflowTracker(store, run.info.run_id, folder)
    except UnreachableError as error:
        _log.warning("%s The job goes on without MLflow. %s", error, _import_advice(folder))
        return NoTracker()
    if run_id:
        tracker.set_tags(tags)
    if system_metrics:
        tracker.watch_system()
    return tracker


def default_run_name(result: JobResult, folder: Path) -> str:
    """Jobs of a study differ in what their folders are called, others in their seed."""
    if result.study:
        return f"{result.method} {folder.name}"
    return f"{result.method} {result.model} {result.task} seed {result.seed}"


class MlflowTracker(Tracker):
    """Writes to a run that exists. The first failure is warned about. From a server that is away the job waits for one
    answer now and one at its end, when all steps, kept in memory, are sent if it is back. With strict, failures are
    raised instead."""

    def __init__(self, store: Store, run_id: str, folder: Path, *, strict: bool = False) -> None:
        self.run_id: str = run_id
        self.strict = strict
        self._store, self._folder = store, folder
        self._buffer: list[Metric] = []
        self._datasets: list[DatasetInput] = []
        self._flushed_at_seconds = time.monotonic()
        self._has_failed = self._is_away = self._was_asked_again = False
        self._monitor: SystemMetricsMonitor | None = None
        self.logged: dict[tuple[str, int], float] = {}  # by metric and step: what the run has, or will have
        self.known_params: set[str] = set()
        self.known_pictures: set[tuple[str, int]] = set()  # by key and step

    def log_step(self, step: int, values: Mapping[str, float], unix_seconds: float | None = None) -> None:
        self._keep(step, values, unix_seconds)
        is_due = time.monotonic() - self._flushed_at_seconds >= _FLUSH_SECONDS or len(self._buffer) >= _FLUSH_VALUES
        if is_due and not self._has_failed:
            with self._warned():
                self._flush()

    def log_picture(self, key: str, picture: np.ndarray, step: int, unix_seconds: float | None = None) -> None:
        if self._has_failed or (key, step) in self.known_pictures:
            return  # those of a server that was away are sent with the folder
        with self._warned():
            self._send_picture(key, picture, step, milliseconds(unix_seconds))
            self.known_pictures.add((key, step))

    def log_params(self, params: Mapping[str, object], only: Sequence[str] | None = None) -> None:
        from mlflow.entities import Param

        if self._is_away:
            return
        flat = params_of(params, only)
        new = [Param(key, value) for key, value in flat.items() if key not in self.known_params]
        with self._warned():
            self._store.client.log_batch(self.run_id, params=new)
            self.known_params.update(flat)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        if not self._is_away:
            with self._warned():
                self._store.client.log_batch(self.run_id, tags=as_run_tags(tags))

    def log_dataset(self, name: str, split: str, source: str, digest: str, rows: int) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:36],
            source_type="local" if Path(source).exists() else "external",
            source=json.dumps({"uri": redact_forms(source)}),
            profile=json.dumps({"rows": rows}),
        )
        self._datasets.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))

    def log_folder(self, folder: Path, *, adapter: bool) -> None:
        client = self._store.client
        if self._is_gone():
            return
        with self._warned():
            for path in _matching(folder, _TEXT_ARTIFACTS):
                text = redact(path.read_text(encoding="utf-8", errors="replace"))
                client.log_text(self.run_id, text, path.relative_to(folder).as_posix())
            for path in _matching(folder, (*_DATA_ARTIFACTS, ADAPTER_FOLDER) if adapter else _DATA_ARTIFACTS):
                client.log_artifact(self.run_id, str(path))
            for path in _matching(folder, _PICTURE_FOLDERS):
                client.log_artifact(self.run_id, str(path), "pictures")
            for step, key, path in stored_samples(folder):
                if (key, step) not in self.known_pictures:
                    self._send_picture(key, read_picture(path), step, milliseconds(path.stat().st_mtime))

    def close(self, result: JobResult) -> None:
        self._keep(result.steps, {key: value for key, value in result.metrics.items() if not math.isnan(value)})
        if self._is_gone():
            return  # not even to stop the watch: MLflow's thread would wait too, and ends by itself
        if self._monitor is not None:
            self._monitor.finish()  # type: ignore[no-untyped-call]
        if self._datasets:
            with self._warned():
                self._store.client.log_inputs(self.run_id, self._datasets)
        self._end(result)

    def watch_system(self) -> None:
        """Log CPU, memory, disk, network and GPU use every few seconds from a thread of MLflow's."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # A server that is gone is warned about once, by us.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
        with self._warned():
            uri, is_resumed = self._store.uri, bool(self.logged)
            monitor = SystemMetricsMonitor(self.run_id, tracking_uri=uri, resume_logging=is_resumed)  # type: ignore[no-untyped-call]
            monitor.start()  # type: ignore[no-untyped-call]
            self._monitor = monitor

    def _end(self, result: JobResult) -> None:
        if self._has_failed or len(self._buffer) > _FLUSH_VALUES:  # MLflow sends a long batch in parts, tags first
            with self._warned():
                self._flush()
        items: list[float] = []
        with contextlib.suppress(ValueError, OSError):  # a scorer's own items; the report says what is wrong with them
            items = read_item_scores(self._folder / PREDICTIONS_FILE)
        tags = result_tags(result, self._folder.name, items) | ({} if self._has_failed else {COMPLETE_TAG: "true"})
        with self._warned():
            self._flush(tags)
        with self._warned():
            end_time = end_milliseconds(result) if self.strict else None
            self._store.client.set_terminated(self.run_id, _RUN_STATUS[result.status], end_time)

    def _keep(self, step: int, values: Mapping[str, float], unix_seconds: float | None = None) -> None:
        from mlflow.entities import Metric

        timestamp = milliseconds(unix_seconds)
        for key, value in values.items():
            if self.logged.get((key, step)) != value:
                self.logged[key, step] = value
                self._buffer.append(Metric(key, float(value), timestamp, step))

    def _flush(self, tags: Mapping[str, str] | None = None) -> None:
        self._flushed_at_seconds = time.monotonic()
        self._store.client.log_batch(self.run_id, metrics=self._buffer, tags=as_run_tags(tags or {}))
        self._buffer = []

    def _is_gone(self) -> bool:
        """At the end of a job: whether a server that was away still is. Asked once, as the answer may take long."""
        if self._is_away and not self._was_asked_again:
            self._was_asked_again, self._is_away = True, False
            with self._warned():
                self._flush()
        return self._is_away

    def _send_picture(self, key: str, picture: np.ndarray, step: int, timestamp: int) -> None:
        self._store.client.log_image(self.run_id, picture, key=key, step=step, timestamp=timestamp, synchronous=True)

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a driver, an artifact store or a proxy may raise anything
            problem = Problem(f"MLflow must take what a job logs ({brief(error)})", redact_forms(self._store.uri))
            if self.strict:
                raise TrackingError(problem) from error
            if not self._has_failed:
                _log.warning("%s The job goes on. %s", problem, _import_advice(self._folder))
            self._has_failed, self._is_away = True, is_unreachable(error)


def reopen_run(store: Store, run_id: str, folder: Path, *, strict: bool = False) -> MlflowTracker:
    """Continue a run: what it holds already is not sent again, and it counts as running until it is closed."""
    tracker = MlflowTracker(store, run_id, folder, strict=strict)
    with explained(Problem("the MLflow run must exist and answer", run_id)):
        data = store.client.get_run(run_id).data
        for key in data.metrics:
            if not key.startswith("system/"):
                history = store.client.get_metric_history(run_id, key)
                tracker.logged.update({(key, metric.step): metric.value for metric in history})
        store.client.update_run(run_id, status="RUNNING")
        store.client.set_tag(run_id, COMPLETE_TAG, "false")
        if CAUSE_TAG in data.tags:  # why it ended before
            store.client.delete_tag(run_id, CAUSE_TAG)
    tracker.known_params.update(data.params)
    tracker.known_pictures = known_pictures(store.client, run_id)
    return tracker


def end_milliseconds(result: JobResult) -> int | None:
    """When the job ended, or None if it does not say."""
    started = start_seconds(result)
    return None if started is None else milliseconds(started + result.metrics.get("time/job_seconds", 0.0))


def start_seconds(result: JobResult) -> float | None:
    from datetime import datetime

    try:
        return datetime.fromisoformat(result.started_at).timestamp()
    except ValueError:
        return None


def known_pictures(client: MlflowClient, run_id: str) -> set[tuple[str, int]]:
    """Key and step of what a run holds."""
    found = (_LOGGED_PICTURE.fullmatch(info.path) for info in client.list_artifacts(run_id, IMAGES_FOLDER))
    return {(match["key"], int(match["step"])) for match in found if match}


def _parent_tag(store: Store, parent_run_id: str | None) -> dict[str, str]:
    if parent_run_id is None:
        return {}
    with explained(Problem("the MLflow store must give the run that a job's nests under", parent_run_id)):
        parent = find_run(store, parent_run_id)
    if parent is None:
        _log.warning("MLflow has no run %s to nest this job's run under: it stands alone.", parent_run_id)
        return {}
    return {PARENT_TAG: parent_run_id}


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def _import_advice(folder: Path) -> str:
    return f"Log it later with: python -m peftsweep import {shlex.quote(str(folder))}"
