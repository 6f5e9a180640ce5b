"""The files of a job and of a sweep: their names, how they are written whole, and their readers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from peftsweep.errors import DataError, Problem, did_you_mean

OUTPUTS = Path("outputs")
SWEEPS_FOLDER = OUTPUTS / "sweeps"
PUBLISHED_FOLDER = OUTPUTS / "reference"  # results of the reference benchmark that were imported

RESULT_FILE = "result.json"  # its presence means that a job is complete
TRAINED_FILE = "trained.json"  # the same of a job whose training is over, until there is a result
CONFIG_FILE = "config.yaml"
HISTORY_FILE = "history.jsonl"  # one line a step: step, unix_seconds, metrics
CLASSES_FILE = "classes.json"  # beside an adapter's weights: names that a head answers with, none for a number
PREDICTIONS_FILE = "predictions.jsonl"  # one line a test item
BASE_PREDICTIONS_FILE = "base_predictions.jsonl"  # the same of the model before training
CHECKPOINT_FILE = "checkpoint.pt"
SHARDS_FOLDER = "checkpoint-{step}.shards"  # beside it, of weights that are trained on several ranks in parts
ADAPTER_FOLDER = "adapter"
IMAGES_FOLDER = "images"
EVALUATIONS_FOLDER = "evaluations"  # of a job that was asked other questions later: a folder each
SCORES_FILE = "scores.json"
SAMPLES_FOLDER = f"{IMAGES_FOLDER}/samples"
SWEEP_FILE = "sweep.json"
TABLE_FILE = "table.json"
ARTIFACT_FOLDER = "mlartifacts"  # of MLflow, beside a local database
WITHOUT_JOBS = {ARTIFACT_FOLDER, ".hydra", ADAPTER_FOLDER, "cache", IMAGES_FOLDER, EVALUATIONS_FOLDER, "samples"}


def sweep_folders() -> list[Path]:
    """Of the sweeps under outputs/, the last one last."""
    files = sorted(SWEEPS_FOLDER.glob(f"*/{SWEEP_FILE}"), key=lambda path: path.stat().st_mtime)
    return [path.parent for path in files]


def find_sweep(text: str) -> Path:
    """The folder of a sweep, by its name, a beginning of it that no other has, or the folder itself.

    Raises:
        DataError: no sweep has this name, or several begin so.
    """
    names = [folder.name for folder in sweep_folders()]
    begun = [SWEEPS_FOLDER / name for name in sorted(names) if name.startswith(text)]
    alone = begun if len(begun) == 1 else []
    for folder in (SWEEPS_FOLDER / text, Path(text), *alone):
        if (folder / SWEEP_FILE).exists():
            return folder
    if begun:
        fix = f"Choose from: {', '.join(folder.name for folder in begun)}."
        raise DataError(Problem("only one sweep may begin so", text, fix=fix))
    alike = [name for name in names if text in name]
    fix = did_you_mean(text, names, alike or None) if names else f"There is no {SWEEP_FILE} under {SWEEPS_FOLDER}."
    raise DataError(Problem("no sweep has this name", text, fix=fix))


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
