"""What one can choose of encoders and their tasks, and what of it can't go together. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peftsweep.config.schema import SOURCES, ModelConfig, TaskConfig, number, one_of
from peftsweep.errors import Problem
from peftsweep.modalities.general import general_text_problems

TEXT, WORD = "text", "word"  # what a label is of
KINDS = ("auto", "classes", "number")
# By what a label is, the usual one first. Entities are asked for where tags begin with B- and I-.
SCORES = {
    "classes": ("accuracy", "f1_macro", "matthews"),
    "number": ("spearman", "pearson"),
    "tags": ("accuracy",),
    "entities": ("entity_f1", "accuracy"),
}


@dataclass
class EncoderConfig(ModelConfig):
    """An encoder, with a new head for the labels of a task."""

    label_of: str = one_of(TEXT, (TEXT, WORD))  # what the head answers for; as the task asks


@dataclass
class LabelTaskConfig(TaskConfig):
    """What all tasks of encoders share: where rows come from, and how many are used."""

    modality: str = "encoder"
    label_of: str = one_of(TEXT, (TEXT, WORD))  # told by the task; model.label_of follows it
    source: str = one_of("auto", SOURCES)  # auto: files if given, else embedded for embedded models
    train_files: str | None = None  # jsonl, parquet, csv, or a folder of datasets.save_to_disk
    valid_files: str | None = None  # null: rows held out of the training files
    test_files: str | None = None  # null: rows held out of the training files
    dataset: str | None = None  # of the hub, where no files are given
    subset: str | None = None  # of that dataset
    test_split: str = "test"  # of that dataset; validation rows are always held out of its training split
    label_column: str | None = None  # null: the first known name
    score: str | None = None  # what people compare; null: the usual one of such labels
    train_rows: int | None = number(None, low=1)  # null: all
    valid_rows: int = number(1000, low=1)
    test_rows: int | None = number(None, low=1)  # null: all
    general_text: str = "auto"  # forgetting is measured on it: auto, hub, shipped, or a jsonl file with a text column
    general_rows: int = number(100, low=0)  # passages; 0: forgetting is not measured

    def most_rows(self, split: str) -> int | None:
        """How many of the rows that a split has are used; None: all."""
        return {"train": self.train_rows, "test": self.test_rows}.get(split)


@dataclass
class ClassifyConfig(LabelTaskConfig):
    """A text, or two, and a class or a number."""

    text_column: str | None = None  # null: a known name (text, sentence, sequence, premise, ...)
    pair_column: str | None = None  # null: the one that is known to belong to it (sentence2, hypothesis, ...), if any
    spell: bool = False  # every character is given as a word of its own: sequences, to a model of words
    labels: str = one_of("auto", KINDS)  # auto: numbers with a fraction are numbers, anything else is a class


@dataclass
class TagConfig(LabelTaskConfig):
    """The words of a text, and a tag for each."""

    label_of: str = one_of(WORD, (WORD,))
    words_column: str | None = None  # null: the first known name (tokens, words)


def data_problems(task: LabelTaskConfig, model_label_of: str) -> Iterator[Problem]:
    """What doesn't go together in the settings of a task on labelled texts."""
    if model_label_of != task.label_of:
        rule, fix = f"model.label_of must be what the task asks for, {task.label_of}", "Leave it out: it follows."
        yield Problem(rule, model_label_of, "model.label_of", fix)
    for key in ("train_files", "test_files", "valid_files"):
        path = getattr(task, key)
        if path is not None and not Path(path).exists():
            yield Problem(f"task.{key} must be an existing file or folder", path)
    if task.source == "files" and not task.train_files:
        yield Problem("task.source=files needs task.train_files")
    if (others := task.valid_files or task.test_files) and not task.train_files:
        yield Problem("task.valid_files and task.test_files need task.train_files", others)
    yield from general_text_problems(task.general_text)
    kinds = ("tags", "entities") if task.label_of == WORD else ("classes", "number")
    known = list(dict.fromkeys(score for kind in kinds for score in SCORES[kind]))
    if task.score is not None and task.score not in known:
        yield Problem(f"task.score must be one of {', '.join(known)}", task.score)
