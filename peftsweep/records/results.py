"""What a job leaves behind: its status, its metrics, and `result.json`, the file whose presence means the job is
complete."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from peftsweep.errors import DataError, Problem

SCHEMA_VERSION = 1
RESULT_FILE = "result.json"


class Status(StrEnum):
    """How a job ended. Everything but `ok` keeps its cause and is reported, never dropped."""

    OK = "ok"
    PRUNED = "pruned"
    OOM = "oom"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Stage(StrEnum):
    SINGLE = "single"
    TUNE = "tune"
    CONFIRM = "confirm"


class Direction(StrEnum):
    HIGHER = "higher is better"
    LOWER = "lower is better"
    NEITHER = "neither"


@dataclass(frozen=True)
class Metric:
    """One key of result.json and MLflow. unit is empty for shares and counts."""

    name: str
    unit: str
    direction: Direction
    meaning: str
    by_step: bool = False


def _table(*rows: Metric) -> dict[str, Metric]:
    return {row.name: row for row in rows}


LOSS = "nats per target token, or squared error of a diffusion model's velocity,"

METRICS = _table(
    Metric("train/loss", "", Direction.LOWER, "loss of the last optimizer step's batch", by_step=True),
    Metric("train/lr", "", Direction.NEITHER, "learning rate", by_step=True),
    Metric("train/grad_norm", "", Direction.NEITHER, "gradient norm before clipping", by_step=True),
    Metric("train/tokens_per_second", "tokens/s", Direction.HIGHER, "tokens fed to the model per second of training"),
    Metric("train/tokens", "tokens", Direction.NEITHER, "tokens fed to the model in training, padding not counted"),
    Metric("valid/loss", "", Direction.LOWER, f"{LOSS} on held-out rows or photos", by_step=True),
    Metric("valid/accuracy", "", Direction.HIGHER, "share of validation items right, greedy decoding"),
    Metric("valid/exact_match", "", Direction.HIGHER, "share of validation items that equal their target"),
    Metric("valid/score", "", Direction.HIGHER, "mean of the user's own scorer on validation items"),
    Metric("test/accuracy", "", Direction.HIGHER, "share of test items right, greedy decoding"),
    Metric("test/exact_match", "", Direction.HIGHER, "share of test items that equal their target"),
    Metric("test/score", "", Direction.HIGHER, "mean of the user's own scorer on test items"),
    Metric("test/loss", "", Direction.LOWER, f"{LOSS} on test items"),
    Metric("base/accuracy", "", Direction.HIGHER, "test accuracy of the model before training"),
    Metric("base/exact_match", "", Direction.HIGHER, "test exact match of the model before training"),
    Metric("base/score", "", Direction.HIGHER, "test score of the model before training, by the user's own scorer"),
    Metric("base/loss", "", Direction.LOWER, "test loss of the model before training"),
    Metric(
        "valid/dino_similarity",
        "",
        Direction.HIGHER,
        "mean cosine of image embeddings on validation prompts",
        by_step=True,
    ),
    Metric("test/dino_similarity", "", Direction.HIGHER, "mean cosine of image embeddings on test prompts"),
    Metric("base/dino_similarity", "", Direction.HIGHER, "mean cosine on test prompts of the model before training"),
    Metric("test/memorised", "", Direction.LOWER, "share of pictures nearer to a training photo than to their own"),
    Metric("base/memorised", "", Direction.LOWER, "share of such pictures of the model before training"),
    Metric("test/text_similarity", "", Direction.HIGHER, "mean CLIP cosine of pictures and their test prompts"),
    Metric("base/text_similarity", "", Direction.HIGHER, "mean CLIP cosine of the model before training"),
    Metric("forgetting_nats", "nats", Direction.LOWER, "rise of the loss per token on general text"),
    Metric("drift", "", Direction.LOWER, "(1 - cosine)/2 of images of unrelated prompts with and without the adapter"),
    Metric(
        "memory/train_peak_reserved_bytes",
        "bytes",
        Direction.LOWER,
        "accelerator memory reserved, peak of training steps",
    ),
    Metric(
        "memory/train_peak_allocated_bytes",
        "bytes",
        Direction.LOWER,
        "accelerator memory allocated, peak of training steps",
    ),
    Metric(
        "memory/train_reserved_avg_bytes",
        "bytes",
        Direction.LOWER,
        "accelerator memory reserved, mean over training steps",
    ),
    Metric(
        "memory/train_reserved_p99_bytes",
        "bytes",
        Direction.LOWER,
        "accelerator memory reserved, 99th percentile of steps",
    ),
    Metric(
        "memory/job_peak_reserved_bytes", "bytes", Direction.LOWER, "accelerator memory reserved, peak of the whole job"
    ),
    Metric("memory/job_peak_rss_bytes", "bytes", Direction.LOWER, "host memory of the process, peak of the whole job"),
    Metric("time/setup_seconds", "s", Direction.LOWER, "loading, tokenising, measuring the base, attaching"),
    Metric("time/train_seconds", "s", Direction.LOWER, "optimisation steps alone"),
    Metric("time/eval_seconds", "s", Direction.LOWER, "validation, test and forgetting after training began"),
    Metric("time/job_seconds", "s", Direction.LOWER, "whole job"),
    Metric("time/step_median_seconds", "s", Direction.LOWER, "median optimisation step"),
    Metric("adapter/trainable_params", "parameters", Direction.LOWER, "parameters that training changes"),
    Metric("adapter/total_params", "parameters", Direction.NEITHER, "parameters of base and adapter"),
    Metric("adapter/file_bytes", "bytes", Direction.LOWER, "size of the saved adapter"),
    Metric("energy/train_joules", "J", Direction.LOWER, "energy of the accelerator over training steps"),
    Metric("plan/train_peak_bytes", "bytes", Direction.LOWER, "predicted accelerator memory of training"),
)


@dataclass
class JobResult:
    """Everything that is known of one job, plain data. Metrics that were not measured are absent."""

    status: Status
    method: str
    model: str
    task: str
    seed: int
    stage: Stage = Stage.SINGLE
    study: str | None = None
    cause: str | None = None  # why the status is not ok
    metrics: dict[str, float] = field(default_factory=dict)  # keys of METRICS
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95%, by metric
    task_version: int = 1
    test_items: str | None = None  # fingerprint of the test items, in order: equal means the same questions
    datasets: list[dict[str, Any]] = field(default_factory=list)  # name, split, source, digest, rows of each split read
    model_revision: str | None = None  # commit of the hub repository, or fingerprint of the local weights
    steps: int = 0  # optimizer steps done
    generation_config: dict[str, Any] = field(default_factory=dict)  # effective, of the evaluation
    config: dict[str, Any] = field(default_factory=dict)  # composed and resolved
    environment: dict[str, str] = field(default_factory=dict)
    started_at: str = ""  # ISO 8601, UTC
    mlflow_run_id: str | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        self.status, self.stage = Status(self.status), Stage(self.stage)
        self.intervals = {key: (low, high) for key, (low, high) in self.intervals.items()}


def save_result(result: JobResult, folder: Path) -> Path:
    """Write result.json whole or not at all: a reader never meets half a file. Non-finite metrics are left out."""
    path = folder / RESULT_FILE
    content = asdict(result)
    content["metrics"] = {key: value for key, value in result.metrics.items() if math.isfinite(value)}
    partial = path.with_suffix(".json.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            json.dump(_in_json(content), stream, indent=2, allow_nan=False, default=str)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def _in_json(value: Any) -> Any:
    """JSON has no infinity; a setting may be infinite (`hparams.max_grad_norm=inf`) and is then written as text."""
    if isinstance(value, dict):
        return {key: _in_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_in_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def load_result(path: Path) -> JobResult:
    """Read result.json, or the result.json of a job folder.

    Raises:
        DataError: the file is missing, is not JSON, lacks a field, or was written by a newer peftsweep.
    """
    path = path / RESULT_FILE if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            Problem("a complete job has a result.json", str(path), fix="The job is unfinished or the path is wrong.")
        ) from None
    except ValueError as error:
        raise DataError(Problem(f"result.json must be valid JSON ({error})", str(path))) from None
    return _parse_result(content, path)


def _parse_result(content: Any, path: Path) -> JobResult:
    if not isinstance(content, dict) or "schema_version" not in content:
        raise DataError(Problem("result.json must be an object with a schema_version", source=str(path)))
    if content["schema_version"] > SCHEMA_VERSION:
        rule = f"this peftsweep reads results of schema {SCHEMA_VERSION} and older"
        raise DataError(Problem(rule, content["schema_version"], str(path), "Upgrade peftsweep."))
    known = {f.name for f in fields(JobResult)}
    try:
        return JobResult(**{key: value for key, value in content.items() if key in known})
    except (TypeError, ValueError) as error:
        raise DataError(Problem(f"result.json must describe a job ({error})", source=str(path))) from None
