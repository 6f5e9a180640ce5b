"""The record of one job: its folder, its result, its MLflow run. However the job ends, the record is completed and
closed."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from peftsweep.config import JobConfig
from peftsweep.environment import describe_environment
from peftsweep.errors import Interrupted, OutOfMemoryError, OutputError, PeftsweepError, Problem
from peftsweep.redact import redact
from peftsweep.results import RESULT_FILE, JobResult, Stage, Status, save_result
from peftsweep.tasks.base import DatasetInfo
from peftsweep.tracking import NoTracker, Tracker, default_run_name, open_tracker

log = logging.getLogger(__name__)

HISTORY_FILE = "history.jsonl"
PREDICTIONS_FILE = "predictions.jsonl"


class JobRecord:
    """What is known of a job so far, and where it goes."""

    def __init__(self, folder: Path, result: JobResult, tracker: Tracker) -> None:
        self.folder, self.result, self.tracker = folder, result, tracker
        self.measure: Callable[[], dict[str, float]] = dict  # the probe's metrics, also of a job that fails

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of one step, to the folder and to MLflow."""
        now = time.time()
        with (self.folder / HISTORY_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "unix_seconds": round(now, 3), **metrics}) + "\n")
        self.tracker.log_step(step, metrics, now)
        self.result.steps = max(step, self.result.steps)
        self.result.metrics |= {key: value for key, value in metrics.items() if key in ("train/loss", "valid/loss")}

    def log_datasets(self, datasets: list[DatasetInfo]) -> None:
        for info in datasets:
            self.tracker.log_dataset(info.name, info.split, info.source, info.digest, info.rows)

    def write_items(self, items: list[dict[str, Any]], name: str = PREDICTIONS_FILE) -> None:
        """One JSON line an item."""
        with (self.folder / name).open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


@contextmanager
def recording(config: JobConfig, folder: Path, *, run_id: str | None = None) -> Iterator[JobRecord]:
    """Open the record of a job; on leaving, write result.json and close the MLflow run, whatever happened inside.

    SIGTERM and Ctrl-C end the job as `interrupted`, running out of memory as `oom`, anything else as `failed`; the
    exception
    goes on to the caller. Raises OutputError if the folder can't be written or holds a finished job.
    """
    _claim(folder)
    result = _new_result(config)
    content = dataclasses.asdict(config)
    (folder / "config.yaml").write_text(redact(yaml.safe_dump(content, sort_keys=False)), encoding="utf-8")
    result.config = content
    record = JobRecord(folder, result, _open_tracker(config, folder, result, run_id))
    result.mlflow_run_id = record.tracker.run_id
    with _interrupted_by_signals():
        try:
            record.tracker.log_params(content)
            yield record
        except BaseException as error:
            raise _conclude(record, error) from error
    _close(record)


def _claim(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / HISTORY_FILE).touch()
    except OSError as error:
        raise OutputError(
            Problem(f"the output folder must be writable ({error.strerror})", str(folder), "hydra.run.dir")
        ) from error
    if (folder / RESULT_FILE).exists():
        raise OutputError(
            Problem(
                "a job's folder must not hold a finished job already",
                str(folder),
                "hydra.run.dir",
                "Choose another folder.",
            )
        )


def _new_result(config: JobConfig) -> JobResult:
    return JobResult(
        status=Status.OK,
        method=config.method.name,
        model=config.model.name,
        task=config.task.name,
        seed=config.seed,
        stage=Stage(config.stage),
        study=config.study,
        environment=describe_environment(),
        started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def _open_tracker(config: JobConfig, folder: Path, result: JobResult, run_id: str | None) -> Tracker:
    if not config.tracking.enabled:
        return NoTracker()
    tags = {
        "method": result.method,
        "model": result.model,
        "task": result.task,
        "stage": str(result.stage),
        "seed": str(result.seed),
    }
    return open_tracker(
        uri=config.tracking.uri,
        experiment=config.tracking.experiment,
        run_name=default_run_name(result.method, result.task, result.seed),
        folder=folder,
        tags=tags | ({"study": result.study} if result.study else {}),
        system_metrics=config.tracking.system_metrics,
        run_id=run_id,
    )


def _conclude(record: JobRecord, error: BaseException) -> BaseException:
    """Book a failed job and answer the exception that the caller should see."""
    status, shown = _diagnose(error)
    record.result.status = status
    record.result.cause = str(shown) or type(shown).__name__
    if status is Status.FAILED and not isinstance(shown, PeftsweepError):
        log.error("%s", "".join(traceback.format_exception(error)))
        record.result.cause = f"{type(error).__name__}: {error}"
    _close(record)
    return shown


def _diagnose(error: BaseException) -> tuple[Status, BaseException]:
    if isinstance(error, (KeyboardInterrupt, Interrupted)):
        return Status.INTERRUPTED, error if isinstance(error, Interrupted) else Interrupted(
            "the job was interrupted by Ctrl-C"
        )
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        fix = (
            "Lower hparams.batch_size (and raise hparams.gradient_accumulation), set hparams.gradient_checkpointing=true, "
            "lower hparams.max_seq_length, or choose a narrower model.dtype."
        )
        return Status.OOM, OutOfMemoryError(
            Problem(f"the job must fit in memory ({str(error).splitlines()[0] if str(error) else 'host'})", fix=fix)
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Status.FAILED, OutputError(
            Problem("the disk must have room for the job's files", error.filename, fix="Free some and run again.")
        )
    return Status.FAILED, error


def _close(record: JobRecord) -> None:
    """result.json first, then MLflow: a tracking server that is down can't cost a result."""
    record.result.metrics |= record.measure()
    try:
        save_result(record.result, record.folder)
    except OSError as error:
        (record.folder / RESULT_FILE).with_suffix(".json.partial").unlink(missing_ok=True)
        raise OutputError(
            Problem(f"result.json must be written ({error.strerror})", str(record.folder), fix="Free some space.")
        ) from error
    finally:
        if record.result.status is Status.OK or record.folder.exists():
            record.tracker.log_folder(record.folder, adapter=bool(record.result.config["tracking"]["log_adapter"]))
        record.tracker.close(record.result)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """SIGTERM raises Interrupted, as Ctrl-C raises KeyboardInterrupt; only the main thread may set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_interrupted(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Interrupted(f"the job was interrupted by {signal.Signals(number).name}")

    before = signal.signal(signal.SIGTERM, raise_interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
