"""What a job leaves behind: its status, its metrics, and `result.json`, the file whose presence means the job is
complete."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from peftsweep.errors import DataError, Problem
from peftsweep.records.files import RESULT_FILE, write_whole

SCHEMA_VERSION = 1


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
    has_diverged: bool = False  # the loss or the score was no finite number: a result, and the worst there is
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


def save_result(result: JobResult, folder: Path, name: str = RESULT_FILE) -> Path:
    """Write result.json whole or not at all: a reader never meets half a file. Non-finite metrics are left out."""
    path = folder / name
    write_whole(path, json.dumps(to_content(result), indent=2, allow_nan=False, default=str))
    return path


def to_content(result: JobResult) -> dict[str, Any]:
    """A result as result.json holds it."""
    content: dict[str, Any] = _in_json(asdict(result))
    content["metrics"] = {key: value for key, value in result.metrics.items() if math.isfinite(value)}
    return content


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
    return parse_result(content, str(path))


def parse_result(content: Any, source: str) -> JobResult:
    """The result that a result.json holds, or MLflow. Raises DataError: it describes no job, or is too new."""
    if not isinstance(content, dict) or "schema_version" not in content:
        raise DataError(Problem("result.json must be an object with a schema_version", source=source))
    if content["schema_version"] > SCHEMA_VERSION:
        rule = f"this peftsweep reads results of schema {SCHEMA_VERSION} and older"
        raise DataError(Problem(rule, content["schema_version"], source, "Upgrade peftsweep."))
    known = {f.name for f in fields(JobResult)}
    try:
        return JobResult(**{key: value for key, value in content.items() if key in known})
    except (TypeError, ValueError) as error:
        raise DataError(Problem(f"result.json must describe a job ({error})", source=source)) from None
