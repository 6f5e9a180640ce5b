"""What a report is made of: finished jobs, with their files; from a sweep's folder, or any folder that holds jobs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from peftsweep.errors import DataError, Problem
from peftsweep.records.items import read_item_scores
from peftsweep.records.metrics import METRICS
from peftsweep.records.results import RESULT_FILE, JobResult, load_result

PREDICTIONS_FILE = "predictions.jsonl"
HISTORY_FILE = "history.jsonl"
SWEEP_FILE = "sweep.json"
NO_JOBS_BELOW = {"mlartifacts", ".hydra", "adapter", "cache", "images", "samples"}  # folders without jobs of their own
# Settings that change nothing about what is measured, or that differ between jobs with the same settings.
NOT_SETTINGS = {"tracking", "device", "allow_shared_gpu", "cache", "resume", "save_adapter", "seed", "stage", "study"}
REFERENCE = "reference"
OWN = "own"


class Files(Protocol):
    """The files that a job left, wherever they are now."""

    def path(self, name: str) -> Path | None:
        """Where a file can be read, fetched first if need be; None if the job left none."""
        ...


@dataclass(frozen=True)
class FolderFiles:
    """Files of a job that lie in a folder of this machine."""

    folder: Path

    def path(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.exists() else None


@dataclass(frozen=True)
class Job:
    """One finished job. Its test items and its history are read when they are asked for.

    name: its folder's, such as `0003`, `best-seed-1`, `default-seed-1`; location: folder or MLflow run, for people.
    """

    result: JobResult
    name: str
    location: str
    files: Files

    @property
    def origin(self) -> str:
        """`own`, or `reference` for a published result that was imported."""
        return str(self.result.config.get("origin", OWN))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the job was run with, by dotted key, without its seed and without what changes no measurement."""
        config = {key: value for key, value in self.result.config.items() if key not in NOT_SETTINGS}
        return dict(_flat(config))

    @cached_property
    def item_scores(self) -> list[float]:
        """One for each test item, in order; empty if the job left none.

        Raises:
            DataError: the file can't be read.
        """
        path = self.files.path(PREDICTIONS_FILE)
        try:
            return read_item_scores(path) if path else []
        except (ValueError, TypeError, OSError) as error:
            rule = f"a job's test items must be readable ({error})"
            raise DataError(Problem(rule, str(path), fix="Run the job again, or move its folder away.")) from None

    def history(self) -> list[dict[str, float]]:
        """What was measured by step: `step`, `unix_seconds` and keys of METRICS. Empty if nothing is left of it."""
        path = self.files.path(HISTORY_FILE)
        rows: list[dict[str, float]] = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break  # a killed job's last line is cut short
        return rows


@dataclass(frozen=True)
class SearchRange:
    """What a study could choose one setting from: a range, or choices."""

    key: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()
    default: Any = None


@dataclass(frozen=True)
class Study:
    """What is known of a study beside its jobs. ranges: empty where nothing says what was searched; then, from MLflow,
    best: the settings that its own sweep found, and has_default_score: whether it judged the published ones."""

    name: str  # <sweep>/<label>, as JobResult.study
    objective: str | None = None  # key of METRICS that its trials are judged by
    constraint: str | None = None  # limits that a winner had to keep to, as typed
    ranges: tuple[SearchRange, ...] = ()
    best: Mapping[str, Any] | None = None
    has_default_score: bool = False


@dataclass(frozen=True)
class Loaded:
    """All that was found at a source. unreadable: why a job that is there was left out, naming it."""

    source: str
    jobs: tuple[Job, ...]
    unreadable: tuple[str, ...] = ()
    studies: Mapping[str, Study] = field(default_factory=dict)  # by name


def load_folder(folder: Path) -> Loaded:
    """Every finished job below a folder. Raises DataError: there is no such folder."""
    if not folder.is_dir():
        raise DataError(Problem("the folder must exist", str(folder), "runs", "Sweeps lie under outputs/sweeps."))
    jobs: list[Job] = []
    unreadable: list[str] = []
    studies: dict[str, Study] = {}
    for path in _files(folder):
        try:
            if path.name == SWEEP_FILE:
                studies |= {study.name: study for study in read_studies(path)}
            else:
                jobs.append(read_job(path.parent))
        except DataError as error:
            unreadable.append(str(error))
    return Loaded(str(folder), tuple(jobs), tuple(unreadable), studies)


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in NO_JOBS_BELOW)
        yield from (Path(parent) / name for name in (SWEEP_FILE, RESULT_FILE) if name in files)


def read_job(folder: Path) -> Job:
    """The job of a folder. Raises DataError: its result.json is half written, of a newer peftsweep, or no result."""
    path = folder / RESULT_FILE
    try:
        result = load_result(path)
        result.metrics = finite(result.metrics)
    except (OSError, AttributeError, TypeError) as error:
        raise DataError(Problem(f"result.json must describe a job ({error})", source=str(path))) from None
    return Job(result, folder.name, str(folder), FolderFiles(folder))


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Without what is no number: a metric that was not measured is absent."""
    return {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def read_studies(path: Path) -> list[Study]:
    """The studies of a sweep.json. Raises DataError: it is cut short, or a newer peftsweep wrote it."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        objective, constraint = METRICS[plan["objective"]].key, plan["settings"].get("constraint")
        return [
            Study(study["name"], objective, constraint, tuple(_range(item) for item in study["space"]))
            for study in plan["studies"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        rule = f"a sweep.json must describe a sweep ({type(error).__name__}: {error})"
        raise DataError(Problem(rule, source=str(path))) from None


def _range(item: Mapping[str, Any]) -> SearchRange:
    return SearchRange(**{**item, "choices": tuple(item["choices"])})


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
