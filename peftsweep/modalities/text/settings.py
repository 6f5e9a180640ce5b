"""What one can choose of text models and their tasks, and what of it can't go together. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from peftsweep.config.schema import SOURCES, TaskConfig, number, one_of
from peftsweep.errors import Problem
from peftsweep.modalities.general import general_text_problems


@dataclass
class TextTaskConfig(TaskConfig):
    """What all text tasks share: where rows come from, how long they are, what is measured."""

    modality: str = "text"
    source: str = one_of("auto", SOURCES)  # auto: files if given, embedded for embedded models, else hub
    train_files: str | None = None  # jsonl, parquet, csv, or a folder of datasets.save_to_disk
    valid_files: str | None = None  # null: rows held out of the training files
    test_files: str | None = None  # null: rows held out of the training files
    prompt_column: str | None = None  # null: the first known name (query, question, prompt, instruction with input)
    response_column: str | None = None  # null: the first known name (response, answer, completion, output)
    template: str = "{prompt}"  # the text before the response; {prompt} is the row's prompt
    loss_on: str = one_of("response", ("response", "all"))  # tokens that are trained on; only responses are ever judged
    train_rows: int | None = number(None, low=1)  # null: all
    valid_rows: int = number(1000, low=1)
    test_rows: int | None = number(None, low=1)  # null: all
    max_new_tokens: int = number(300, low=1)  # longest answer that evaluation waits for
    general_text: str = "auto"  # forgetting is measured on it: auto, hub, shipped, or a jsonl file with a text column
    general_rows: int = number(100, low=0)  # passages; 0: forgetting is not measured

    def most_rows(self, split: str) -> int | None:
        """How many of the rows that a split has are used; None: all."""
        return {"train": self.train_rows, "test": self.test_rows}.get(split)


@dataclass
class MetamathConfig(TextTaskConfig):
    """Mathematics word problems, judged by the final number."""

    # training rows with a longer "prompt response" are dropped; null: none
    max_characters: int | None = number(None, low=1)


@dataclass
class SftConfig(TextTaskConfig):
    """The user's own prompts and responses, or chats."""

    messages_column: str | None = None  # chat rows ([{role, content}, ...]) go through the tokenizer's chat template
    # "module:function" of (prompt, target, generated) -> float
    scorer: str | None = field(default=None, metadata={"runs_code": True})


def source_problems(task: TextTaskConfig) -> Iterator[Problem]:
    """What doesn't go together in the settings of a task on texts."""
    for key in ("train_files", "test_files", "valid_files"):
        path = getattr(task, key)
        if path is not None and not Path(path).exists():
            yield Problem(f"task.{key} must be an existing file or folder", path)
    if task.source == "files" and not task.train_files:
        yield Problem("task.source=files needs task.train_files")
    if (others := task.valid_files or task.test_files) and not task.train_files:
        yield Problem("task.valid_files and task.test_files need task.train_files", others)
    yield from general_text_problems(task.general_text)
