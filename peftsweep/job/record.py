"""The record of one job: its folder, its result, its MLflow run. However the job ends, the record is completed and
closed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import yaml

from peftsweep.config.schema import JobConfig
from peftsweep.errors import (
    DeviceLostError,
    Interrupted,
    NonFiniteLossError,
    OutOfMemoryError,
    OutputError,
    PeftsweepError,
    Problem,
    Pruned,
    is_device_lost,
    is_out_of_memory,
)
from peftsweep.job.checkpoint import forget_checkpoint
from peftsweep.job.evaluation import Scores
from peftsweep.job.interruption import Interruption
from peftsweep.modalities.base import DatasetInfo, Task
from peftsweep.records.environment import describe_environment
from peftsweep.records.files import (
    BASE_PREDICTIONS_FILE,
    CONFIG_FILE,
    HISTORY_FILE,
    IMAGES_FOLDER,
    PREDICTIONS_FILE,
    RESULT_FILE,
    SAMPLES_FOLDER,
    TRAINED_FILE,
    read_history,
    write_whole,
)
from peftsweep.records.metrics import METRICS
from peftsweep.records.pictures import plain_caption, sample_name, write_pictures
from peftsweep.records.redact import redact_params
from peftsweep.records.results import JobResult, Stage, Status, load_result, save_result
from peftsweep.tracking.tracker import NoTracker, Tracker, default_run_name, open_tracker

log = logging.getLogger(__name__)

DISK_IS_FULL = "No space left on device"  # safetensors and torch tell the cause in their text alone
LESS_MEMORY = (
    "Lower hparams.batch_size (and raise hparams.gradient_accumulation), set hparams.gradient_checkpointing=true, "
    "lower hparams.max_seq_length, or choose a narrower model.dtype."
)
DEVICE_LOST = (
    "Run the job again. If it happens again, CUDA_LAUNCH_BLOCKING=1 shows where, "
    "and `nvidia-smi -q` whether the card is sound."
)


class JobRecord:
    """What is known of a job so far, and where it goes."""

    def __init__(self, folder: Path, result: JobResult) -> None:
        self.folder, self.result = folder, result
        self.tracker: Tracker = NoTracker()
        self.measure: Callable[[], dict[str, float]] = dict  # the probe's metrics, also of a job that fails
        self.interruption = Interruption()
        self.has_begun = False

    def begin(self, config: JobConfig, *, done_steps: int = 0, run_id: str | None = None) -> None:
        """The job is as `config` says now: note it, and open its MLflow run. done_steps, run_id: of a job that is
        resumed, whose earlier result gives way, as it is no longer complete; what it did after these steps is done
        again."""
        self.has_begun = True
        self.result.environment = describe_environment()  # only now: asking for the GPU opens CUDA
        self.result.config = redact_params(dataclasses.asdict(config))
        result, history = self.folder / RESULT_FILE, self.folder / HISTORY_FILE
        if result.exists():
            result.replace(self.folder / f"{RESULT_FILE}.before-resume")
        self.result.steps = done_steps
        kept = [row for row in read_history(history) if row["step"] <= done_steps]
        write_whole(history, "".join(json.dumps(row) + "\n" for row in kept))
        (self.folder / CONFIG_FILE).write_text(yaml.safe_dump(self.result.config, sort_keys=False), encoding="utf-8")
        if config.tracking.enabled:
            self.tracker = _open_tracker(config, self.folder, self.result, run_id)
        self.result.mlflow_run_id = self.tracker.run_id
        self.tracker.log_params(self.result.config, config.tracking.params)

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of one step, to the folder and to MLflow."""
        now = time.time()
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        with (self.folder / HISTORY_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "unix_seconds": round(now, 3), **finite}) + "\n")
        self.tracker.log_step(step, metrics, now)
        self.result.steps = max(step, self.result.steps)
        self.result.metrics |= {key: value for key, value in metrics.items() if not METRICS[key].by_step_only}

    def keep_trained(self) -> None:
        """Note what is known after training, for the case that the process is killed before result.json is written."""
        cause = "the process was killed after training"
        known = dataclasses.replace(self.result, status=Status.INTERRUPTED, cause=cause)
        known.metrics = known.metrics | self.measure()
        try:
            save_result(known, self.folder, TRAINED_FILE)
        except OSError as error:  # no reason not to score what was trained
            log.warning("%s could not be written (%s).", TRAINED_FILE, error)

    def log_samples(self, step: int, samples: Mapping[str, np.ndarray]) -> None:
        """Pictures of one step, by caption, to the folder and to MLflow."""
        for caption, picture in samples.items():
            write_pictures({sample_name(step, caption): picture}, self.folder / SAMPLES_FOLDER)
            self.tracker.log_picture(plain_caption(caption), picture, step)

    def log_datasets(self, datasets: list[DatasetInfo]) -> None:
        for info in datasets:
            self.result.datasets.append(dataclasses.asdict(info))
            self.tracker.log_dataset(info.name, info.split, info.source, info.digest, info.rows)

    def write_scores(self, scores: Scores, task: Task) -> None:
        """The scores into the result; items and pictures, where there are any, into the folder."""
        self.result.metrics |= scores.metrics
        self.result.intervals |= scores.intervals
        self.result.generation_config, self.result.task_version = scores.generation_config, task.version
        write_evidence(scores, self.folder)
        self.log_datasets([info for info in task.datasets() if info.split == "test"])


def write_evidence(scores: Scores, folder: Path) -> None:
    """What was answered and drawn: predictions.jsonl, the base model's, pictures."""
    for name, items in ((PREDICTIONS_FILE, scores.items), (BASE_PREDICTIONS_FILE, scores.base_items)):
        if items:
            lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
            (folder / name).write_text("".join(lines), encoding="utf-8")
    write_pictures(scores.images, folder / IMAGES_FOLDER)
    write_pictures(scores.pictures, folder)


@contextmanager
def recording(config: JobConfig, folder: Path) -> Iterator[JobRecord]:
    """Open the record of a job; on leaving, write result.json and close the MLflow run, whatever happened inside, also
    before the record has begun.

    SIGTERM and Ctrl-C end the job as `interrupted`, running out of memory as `oom`, anything else as `failed`; the
    exception goes on to the caller. Raises OutputError if the folder can't be written or holds a finished job; one that
    ended badly gives way.
    """
    _claim(folder)
    record = JobRecord(folder, _new_result(config))
    with _concluded(record):
        try:
            yield record
        except BaseException:
            if not record.has_begun and config.resume is None:
                with contextlib.suppress(PeftsweepError, OSError):  # what ended the job is what must be told
                    record.begin(config)
            raise


@contextmanager
def completing(config: JobConfig, folder: Path, trained: JobResult) -> Iterator[JobRecord]:
    """Open the record of a job that was trained and not scored, to add the scores; on leaving, as `recording`."""
    record = JobRecord(folder, dataclasses.replace(copy.deepcopy(trained), status=Status.OK, cause=None))
    record.has_begun = True
    with _concluded(record):
        if trained.mlflow_run_id:
            record.tracker = _open_tracker(config, folder, record.result, trained.mlflow_run_id)
        yield record


@contextmanager
def _concluded(record: JobRecord) -> Iterator[None]:
    with record.interruption.watched():
        try:
            yield
            record.result.metrics |= record.measure()  # waits for the device: what failed on it comes out here at last
        except BaseException as error:
            raise _conclude(record, error) from error
    _close(record)


def _claim(folder: Path) -> None:
    """Make the folder this job's own."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / HISTORY_FILE).touch()
    except OSError as error:
        rule = f"the output folder must be writable ({error.strerror})"
        raise OutputError(Problem(rule, str(folder), "hydra.run.dir")) from error
    if (folder / RESULT_FILE).exists() and load_result(folder).status is Status.OK:
        rule = "a job's folder must not hold a finished job already"
        raise OutputError(Problem(rule, str(folder), "hydra.run.dir", "Choose another folder."))


def _new_result(config: JobConfig) -> JobResult:
    return JobResult(
        status=Status.OK,
        method=config.method.name,
        model=config.model.name,
        task=config.task.name,
        seed=config.seed,
        stage=Stage(config.stage),
        study=config.study,
        config=redact_params(dataclasses.asdict(config)),
        started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def _open_tracker(config: JobConfig, folder: Path, result: JobResult, run_id: str | None) -> Tracker:
    told = ("method", "model", "task", "stage", "seed", *(["study"] if result.study else []))
    return open_tracker(
        uri=config.tracking.uri,
        experiment=config.tracking.experiment,
        run_name=default_run_name(result, folder),
        folder=folder,
        tags={key: str(getattr(result, key)) for key in told},
        system_metrics=config.tracking.system_metrics,
        run_id=run_id,
        parent_run_id=config.tracking.parent_run_id,
    )


def _conclude(record: JobRecord, error: BaseException) -> BaseException:
    """Book a failed job and answer the exception that the caller should see."""
    record.result.status, shown = _diagnose(error)
    record.result.cause = str(shown) or type(shown).__name__
    record.result.has_diverged = isinstance(error, NonFiniteLossError)
    if record.result.status is Status.FAILED and not isinstance(shown, PeftsweepError):
        log.error("%s", "".join(traceback.format_exception(error)))
        record.result.cause = f"{type(error).__name__}: {error}"
    try:
        record.result.metrics |= record.measure()
    except Exception as unmeasured:  # what ended the job is what must be told
        log.warning("The job's time and memory are not known (%s).", unmeasured)
    _close(record)
    return shown


def _diagnose(error: BaseException) -> tuple[Status, BaseException]:
    if isinstance(error, Interrupted):
        return Status.INTERRUPTED, error
    if isinstance(error, Pruned):
        return Status.PRUNED, error
    if isinstance(error, KeyboardInterrupt):
        return Status.INTERRUPTED, Interrupted("the job was interrupted by Ctrl-C")
    if isinstance(error, OutOfMemoryError):
        return Status.OOM, error
    reason = str(error).partition("\n")[0]
    if is_out_of_memory(error):
        rule = f"the job must fit in memory ({reason or 'host'})"
        return Status.OOM, OutOfMemoryError(Problem(rule, fix=LESS_MEMORY))
    if is_device_lost(error):
        return Status.FAILED, DeviceLostError(Problem(f"the device must go on answering ({reason})", fix=DEVICE_LOST))
    if getattr(error, "errno", None) == errno.ENOSPC or DISK_IS_FULL in str(error):
        rule = "the disk must have room for the job's files"
        problem = Problem(rule, getattr(error, "filename", None), fix="Free some and run again.")
        return Status.FAILED, OutputError(problem)
    return Status.FAILED, error


def _close(record: JobRecord) -> None:
    """result.json first, then MLflow: a tracking server that is down can't cost a result."""
    judged = (value for key, value in record.result.metrics.items() if key.startswith(("valid/", "test/")))
    record.result.has_diverged |= not all(map(math.isfinite, judged))
    if not record.has_begun and (record.folder / RESULT_FILE).exists():
        return  # of the job that was to be resumed, and was not
    try:
        save_result(record.result, record.folder)
        (record.folder / TRAINED_FILE).unlink(missing_ok=True)
        if record.result.status is Status.OK:
            forget_checkpoint(record.folder)
    except OSError as error:
        rule = f"result.json must be written ({error.strerror})"
        if record.result.status is Status.OK:  # MLflow must not call finished what the folder doesn't hold
            record.result.status, record.result.cause = Status.FAILED, rule
        raise OutputError(Problem(rule, str(record.folder), fix="Free some space.")) from error
    finally:
        record.tracker.log_folder(record.folder, adapter=bool(record.result.config["tracking"]["log_adapter"]))
        record.tracker.close(record.result)
