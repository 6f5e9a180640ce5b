"""General text, unrelated to any task: forgetting is the rise of the loss on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from peftsweep.errors import DataError, Problem
from peftsweep.modalities.load_errors import hub_data_errors
from peftsweep.modalities.tables import read_table, require_text
from peftsweep.modalities.text_world import general_passages

SHIPPED = Path(__file__).parent / "general_text.jsonl"
COLUMN = "text"
HUB_DATASET, HUB_CONFIG = "HuggingFaceFW/finewiki", "en"


def build_general_texts(choice: str, rows: int, *, embedded_model: bool, hub: bool) -> Callable[[], Sequence[str]]:
    """A function that reads the text when it is needed.

    choice: hub (English Wikipedia, as in the reference benchmark), shipped (100 passages of this package), a jsonl
    file with a `text` column, or auto: the miniature's own text for embedded models, else hub where the task's data is
    from there.
    """
    if rows == 0:
        return list
    if choice == "auto":
        choice = "embedded" if embedded_model else "hub" if hub else "shipped"
    if choice == "embedded":
        return partial(general_passages, rows)
    if choice == "hub":
        return partial(_hub_texts, rows)
    return partial(_file_texts, SHIPPED if choice == "shipped" else Path(choice), rows)


def general_text_problems(choice: str) -> Iterator[Problem]:
    """What is wrong with a choice."""
    if choice not in ("auto", "hub", "shipped", "embedded") and not Path(choice).is_file():
        yield Problem("task.general_text must be auto, hub, shipped or an existing jsonl file", choice)


def _file_texts(path: Path, rows: int) -> list[str]:
    if path == SHIPPED:
        return [json.loads(line)[COLUMN] for line in path.read_text(encoding="utf-8").splitlines()[:rows]]
    table = read_table(path)
    if COLUMN not in table.column_names:
        rule = f"task.general_text must have a column named {COLUMN}"
        raise DataError(Problem(rule, ", ".join(table.column_names), str(path)))
    require_text(table, [COLUMN], path)
    return [str(text) for text in table[COLUMN][:rows]]


def _hub_texts(rows: int) -> list[str]:
    import datasets

    fix = "Use task.general_text=shipped, or task.general_rows=0 to leave forgetting out."
    with hub_data_errors("general text must be readable from the hub", HUB_DATASET, "task.general_text", fix):
        stream = datasets.load_dataset(HUB_DATASET, HUB_CONFIG, split="train", streaming=True)
        return [row[COLUMN] for row in stream.take(rows)]
