"""Rows of text tasks, from files of any usual kind, from the hub, or generated."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from peftsweep.errors import DataError, Problem

PROMPT_COLUMNS = ("query", "question", "prompt", "instruction", "input")
RESPONSE_COLUMNS = ("response", "answer", "completion", "output", "target")
MESSAGES_COLUMNS = ("messages", "conversations")
LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class Row:
    """One prompt and its response; for a chat, `messages` holds all turns and the response is the last one."""

    prompt: str
    response: str
    messages: tuple[tuple[str, str], ...] = ()  # (role, content)


@dataclass(frozen=True)
class Source:
    """Where the splits of a task come from. Each is a function, so that no split is read before it is needed."""

    name: str
    train: Callable[[], list[Row]]
    valid: Callable[[], list[Row]]
    test: Callable[[], list[Row]]


def digest_of(rows: Sequence[Row]) -> str:
    """Fingerprint of rows in their order."""
    digest = hashlib.sha256()
    for row in rows:
        for text in (row.prompt, row.response, *(part for message in row.messages for part in message)):
            digest.update(text.encode())
            digest.update(b"\0")
    return digest.hexdigest()[:16]


@lru_cache(maxsize=8)
def _read_table(path: str, modified: float) -> Any:
    """A `datasets.Dataset` of any supported file; cached for the jobs of one process."""
    import datasets

    file = Path(path)
    datasets.disable_progress_bars()
    if file.is_dir():
        loaded = datasets.load_from_disk(path)
        return loaded["train"] if isinstance(loaded, datasets.DatasetDict) else loaded
    return datasets.load_dataset(LOADERS[file.suffix], data_files=path, split="train")


def read_table(path: Path) -> Any:
    """Read a jsonl, parquet or csv file, or a folder of `Dataset.save_to_disk`.

    Raises:
        DataError: the file is missing, of another kind, unreadable or empty.
    """
    if not path.exists():
        raise DataError(Problem("the data must be an existing file or folder", str(path)))
    if path.is_file() and path.suffix not in LOADERS:
        raise DataError(Problem(f"a data file must end with one of {', '.join(LOADERS)}", str(path)))
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(Problem("a data file must have rows; this one is empty", str(path)))
    try:
        table = _read_table(str(path), path.stat().st_mtime)
    except Exception as error:  # datasets raises a different class for each file kind
        reason = str(error.__cause__ or error).splitlines()[0]
        raise DataError(Problem(f"the data must be readable ({reason})", str(path))) from error
    if len(table) == 0:
        raise DataError(Problem("a data file must have rows; this one is empty", str(path)))
    return table


def read_rows(
    path: Path, prompt_column: str | None = None, response_column: str | None = None, messages_column: str | None = None
) -> list[Row]:
    """All rows of a file. A column that isn't named is the first known name that the file has.

    Raises:
        DataError: a column is missing, or a row has no text in it.
    """
    table = read_table(path)
    chats = messages_column or (
        None if prompt_column else next((c for c in MESSAGES_COLUMNS if c in table.column_names), None)
    )
    if chats:
        _require_column(table, chats, "task.messages_column", MESSAGES_COLUMNS, path)
        return [_chat_row(messages, number, path) for number, messages in enumerate(table[chats], start=1)]
    prompts = _require_column(table, prompt_column, "task.prompt_column", PROMPT_COLUMNS, path)
    responses = _require_column(table, response_column, "task.response_column", RESPONSE_COLUMNS, path)
    _require_text(table, (prompts, responses), path)
    return [Row(str(prompt), str(response)) for prompt, response in zip(table[prompts], table[responses], strict=True)]


def _require_column(table: Any, name: str | None, key: str, usual: Sequence[str], path: Path) -> str:
    found = (
        name
        if name in table.column_names
        else None
        if name
        else next((c for c in usual if c in table.column_names), None)
    )
    if found is None:
        rule = (
            f"the data must have column {name!r}"
            if name
            else f"the data must have one of the columns {', '.join(usual)}"
        )
        raise DataError(Problem(rule, ", ".join(table.column_names), str(path), f"Name it with {key}=<column>."))
    return found


def _require_text(table: Any, columns: Sequence[str], path: Path) -> None:
    for column in columns:
        empty = [number for number, value in enumerate(table[column], start=1) if value is None or str(value) == ""]
        if empty:
            raise DataError(
                Problem(
                    f"column {column!r} must hold text in every row; it is empty in rows {empty[:5]}", source=str(path)
                )
            )


def _chat_row(messages: Any, number: int, path: Path) -> Row:
    turns = tuple(
        (str(m.get("role") or m.get("from")), str(m.get("content") or m.get("value"))) for m in messages or ()
    )
    if len(turns) < 2 or turns[-1][0] not in ("assistant", "gpt"):
        raise DataError(
            Problem("a chat must have at least two turns and end with the assistant's", turns, f"{path}, row {number}")
        )
    names = {"gpt": "assistant", "human": "user"}
    turns = tuple((names.get(role, role), content) for role, content in turns)
    return Row(prompt=turns[-2][1], response=turns[-1][1], messages=turns)


def hold_out(rows: Sequence[Row], count: int, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Split rows at random into (kept, held out). At most a fifth is held out. The split doesn't follow the job's seed:
    trials of one study must be judged on the same rows."""
    count = min(count, len(rows) // 5)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    chosen = set(order[:count])
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in order[:count]]
