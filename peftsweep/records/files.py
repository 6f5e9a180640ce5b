"""The files of a job and of a sweep: their names, how they are written whole, and their readers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

OUTPUTS = Path("outputs")
SWEEPS_FOLDER = OUTPUTS / "sweeps"
PUBLISHED_FOLDER = OUTPUTS / "reference"  # results of the reference benchmark that were imported

RESULT_FILE = "result.json"  # its presence means that a job is complete
TRAINED_FILE = "trained.json"  # the same of a job whose training is over, until there is a result
CONFIG_FILE = "config.yaml"
HISTORY_FILE = "history.jsonl"  # one line a step: step, unix_seconds, metrics
PREDICTIONS_FILE = "predictions.jsonl"  # one line a test item
BASE_PREDICTIONS_FILE = "base_predictions.jsonl"  # the same of the model before training
CHECKPOINT_FILE = "checkpoint.pt"
ADAPTER_FOLDER = "adapter"
IMAGES_FOLDER = "images"
EVALUATIONS_FOLDER = "evaluations"  # of a job that was asked other questions later: a folder each
SCORES_FILE = "scores.json"
SAMPLES_FOLDER = f"{IMAGES_FOLDER}/samples"
SWEEP_FILE = "sweep.json"
TABLE_FILE = "table.json"
ARTIFACT_FOLDER = "mlartifacts"  # of MLflow, beside a local database
WITHOUT_JOBS = {ARTIFACT_FOLDER, ".hydra", ADAPTER_FOLDER, "cache", IMAGES_FOLDER, EVALUATIONS_FOLDER, "samples"}


def existing_file(folder: Path, name: str) -> Path | None:
    """A file of a job that lies in a folder of this machine; None if the job left none."""
    path = folder / name
    return path if path.exists() else None


@contextmanager
def writing_whole(path: Path, *, is_shared: bool = False) -> Iterator[Path]:
    """A file beside `path` that takes its place when all is written: a reader never meets half of it.

    is_shared: jobs side by side may write it, each under a name of its own; containers on one disk share process ids.
    """
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial" if is_shared else f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str, *, mode: int | None = None, is_shared: bool = False) -> None:
    """Write a file whole or not at all. mode: its permissions; is_shared: as in writing_whole."""
    with writing_whole(path, is_shared=is_shared) as partial:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if mode is not None:
            partial.chmod(mode)


def find_files(folder: Path, *names: str) -> Iterator[Path]:
    """The files of these names below a folder, by path; not below folders that hold no jobs."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in WITHOUT_JOBS)
        yield from (Path(parent) / name for name in names if name in files)


def read_history(path: Path | None) -> list[dict[str, Any]]:
    """What was measured by step: `step`, `unix_seconds` and metrics. Empty if nothing is left of it."""
    rows: list[dict[str, Any]] = []
    if path is None or not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # a killed job's last line is cut short
    return rows
