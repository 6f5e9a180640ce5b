"""Rows of text tasks, from files of any usual kind, from the hub, or generated."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from peftsweep.errors import DataError, Problem
from peftsweep.modalities.text.settings import TextTaskConfig

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
    """Where the rows of a task come from. read: the rows of a split, which is not read before it is needed."""

    name: str
    read: Callable[[str], list[Row]]  # of train, valid or test


def digest_of_rows(rows: Sequence[Row]) -> str:
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
    table = None
    try:
        if path.is_dir() or path.stat().st_size:
            table = _read_table(str(path), path.stat().st_mtime)
    except Exception as error:  # datasets raises a different class for each file kind
        if "corresponds to no data" not in str(error):  # a header without rows
            reason = str(error.__cause__ or error).splitlines()[0]
            raise DataError(Problem(f"the data must be readable ({reason})", str(path))) from error
    if not table:
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
    named = prompt_column or response_column
    chats = messages_column or (None if named else _first_known(table, MESSAGES_COLUMNS))
    if chats:
        _require_column(table, chats, "task.messages_column", MESSAGES_COLUMNS, path)
        return [_chat_row(messages, number, path) for number, messages in enumerate(table[chats], start=1)]
    prompts = _require_column(table, prompt_column, "task.prompt_column", PROMPT_COLUMNS, path)
    responses = _require_column(table, response_column, "task.response_column", RESPONSE_COLUMNS, path)
    require_text(table, (prompts, responses), path)
    return [Row(str(prompt), str(response)) for prompt, response in zip(table[prompts], table[responses], strict=True)]


def file_rows(
    task: TextTaskConfig,
    split: str,
    messages_column: str | None = None,
    keep: Callable[[list[Row]], list[Row]] = list,
) -> list[Row]:
    """One split of the user's files; without a validation file, some training rows are held out for it.

    keep: gives the rows that are used out of those of the training file. Raises DataError as read_rows and hold_out do.
    """

    def read(path: str | None) -> list[Row]:
        assert path is not None
        return read_rows(Path(path), task.prompt_column, task.response_column, messages_column)

    if split == "test":
        return read(task.test_files)
    if split == "valid" and task.valid_files:
        return read(task.valid_files)[: task.valid_rows]
    rows = keep(read(task.train_files))
    if task.valid_files:
        return rows
    kept, held_out = hold_out(rows, task.valid_rows)
    return kept if split == "train" else held_out


def _require_column(table: Any, name: str | None, key: str, usual: Sequence[str], path: Path) -> str:
    found = name if name in table.column_names else None if name else _first_known(table, usual)
    if found is None:
        rule = f"column {name!r}" if name else f"one of the columns {', '.join(usual)}"
        columns = ", ".join(table.column_names)
        raise DataError(Problem(f"the data must have {rule}", columns, str(path), f"Name it with {key}=<column>."))
    return found


def _first_known(table: Any, usual: Sequence[str]) -> str | None:
    return next((column for column in usual if column in table.column_names), None)


def require_text(table: Any, columns: Sequence[str], path: Path) -> None:
    """Raises DataError, with the numbers of the rows, where a column is null or blank."""
    for column in columns:
        empty = [number for number, value in enumerate(table[column], start=1) if _is_blank(value)]
        if empty:
            rule = f"column {column!r} must hold text in every row; it is empty in rows {empty[:5]}"
            raise DataError(Problem(rule, source=str(path)))


def _is_blank(value: object) -> bool:
    return value is None or not str(value).strip()


def _chat_row(messages: Any, number: int, path: Path) -> Row:
    turns = tuple(_turn(message) for message in messages or ())
    source = f"{path}, row {number}"
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise DataError(Problem("a chat must have at least two turns and end with the assistant's", turns, source))
    if _is_blank(turns[-1][1]):
        raise DataError(Problem("a chat's last turn must hold text; this one is empty", source=source))
    return Row(prompt=turns[-2][1], response=turns[-1][1], messages=turns)


def _turn(message: Mapping[str, Any]) -> tuple[str, str]:
    """Role and content, also as ShareGPT spells them. A turn without content (a mere tool call) is empty text."""
    role = str(message.get("role") or message.get("from"))
    content = message.get("content") or message.get("value") or ""
    return {"gpt": "assistant", "human": "user"}.get(role, role), str(content)


def hold_out(rows: Sequence[Row], count: int, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Split rows at random into (kept, held out). At most a fifth is held out. The split doesn't follow the job's seed:
    trials of one study must be judged on the same rows.

    Raises:
        DataError: there are too few rows to hold one out.
    """
    if len(rows) < 5:
        rule = "rows to hold validation rows out of must be at least five"
        raise DataError(Problem(rule, len(rows), "task.train_files", "Give task.valid_files=<file>."))
    count = min(count, len(rows) // 5)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    chosen = set(order[:count])
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in order[:count]]
