"""What one can choose of encoders and their tasks, and what of it can't go together. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peftsweep.config.schema import SOURCES, TaskConfig, number, one_of
from peftsweep.errors import Problem

KINDS = ("auto", "classes", "number")
SCORES = {"classes": ("accuracy", "f1_macro", "matthews"), "number": ("spearman", "pearson")}


@dataclass
class ClassifyConfig(TaskConfig):
    """A text, or two, and a class or a number."""

    modality: str = "encoder"
    source: str = one_of("auto", SOURCES)  # auto: files if given, else embedded for embedded models
    train_files: str | None = None  # jsonl, parquet, csv, or a folder of datasets.save_to_disk
    valid_files: str | None = None  # null: rows held out of the training files
    test_files: str | None = None  # null: rows held out of the training files
    dataset: str | None = None  # of the hub, where no files are given
    subset: str | None = None  # of that dataset
    test_split: str = "test"  # of that dataset; validation rows are always held out of its training split
    text_column: str | None = None  # null: a known name (text, sentence, sequence, premise, ...)
    pair_column: str | None = None  # null: the one that is known to belong to it (sentence2, hypothesis, ...), if any
    label_column: str | None = None  # null: the first known name (label, target, class, score, ...)
    labels: str = one_of("auto", KINDS)  # auto: numbers with a fraction are numbers, anything else is a class
    score: str | None = None  # what people compare; null: accuracy for classes, spearman for numbers
    train_rows: int | None = number(None, low=1)  # null: all
    valid_rows: int = number(1000, low=1)
    test_rows: int | None = number(None, low=1)  # null: all

    def most_rows(self, split: str) -> int | None:
        """How many of the rows that a split has are used; None: all."""
        return {"train": self.train_rows, "test": self.test_rows}.get(split)


def data_problems(task: ClassifyConfig) -> Iterator[Problem]:
    """What doesn't go together in the settings of a task on labelled texts."""
    for key in ("train_files", "test_files", "valid_files"):
        path = getattr(task, key)
        if path is not None and not Path(path).exists():
            yield Problem(f"task.{key} must be an existing file or folder", path)
    if task.source == "files" and not task.train_files:
        yield Problem("task.source=files needs task.train_files")
    if (others := task.valid_files or task.test_files) and not task.train_files:
        yield Problem("task.valid_files and task.test_files need task.train_files", others)
    known = [score for scores in SCORES.values() for score in scores]
    if task.score is not None and task.score not in known:
        yield Problem(f"task.score must be one of {', '.join(known)}", task.score)
