"""Rows of text tasks, from files of any usual kind, from the hub, or generated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from peftsweep.errors import DataError, Problem
from peftsweep.modalities.tables import (
    MOST_TEST_ROWS,
    SPLIT_SEED,
    first_known,
    hold_out,
    is_blank,
    read_table,
    require_column,
    require_text,
)
from peftsweep.modalities.text.settings import TextTaskConfig

PROMPT_COLUMNS = ("query", "question", "prompt", "instruction", "input")
ADDED_COLUMNS = {"instruction": "input"}  # Alpaca: an instruction, and what it is about where it needs that
RESPONSE_COLUMNS = ("response", "answer", "completion", "output", "target")
MESSAGES_COLUMNS = ("messages", "conversations")


@dataclass(frozen=True)
class Row:
    """One prompt and its response; for a chat, `messages` holds all turns and the response is the last one."""

    prompt: str
    response: str
    messages: tuple[tuple[str, str], ...] = ()  # (role, content)


@dataclass(frozen=True)
class Source:
    """Where the rows of a task come from. read: the rows of a split, which is not read before it is needed; origin: in
    words, of a split that can be read."""

    name: str
    read: Callable[[str], list[Row]]  # of train, valid or test
    origin: Callable[[str], str]


@dataclass(frozen=True)
class Columns:
    """What the rows of a table are made of. prompt: of these the first must hold text, others are added below where
    they do; chat: all turns, in place of both."""

    prompt: tuple[str, ...] = ()
    response: str | None = None
    chat: str | None = None

    def told(self, names: Sequence[str]) -> str:
        """In words; names: all columns that there are, as none is passed over silently."""
        used = [*self.prompt, self.response, self.chat]
        unused = [name for name in names if name not in used]
        made = f"prompt from {' and '.join(self.prompt)}, response from {self.response}"
        if self.chat:
            made = f"chats from {self.chat}"
        return f"{made}; not used: {', '.join(unused)}" if unused else made


def digest_of_rows(rows: Sequence[Row]) -> str:
    """Fingerprint of rows in their order."""
    digest = hashlib.sha256()
    for row in rows:
        for text in (row.prompt, row.response, *(part for message in row.messages for part in message)):
            digest.update(text.encode())
            digest.update(b"\0")
    return digest.hexdigest()[:16]


def choose_columns(
    table: Any,
    path: Path,
    prompt_column: str | None = None,
    response_column: str | None = None,
    messages_column: str | None = None,
) -> Columns:
    """The columns of a table that rows are made of: the named ones, else the first known name of each kind.

    Raises DataError, with those that there are, where one is missing.
    """
    is_named = prompt_column or response_column
    chat = messages_column or (None if is_named else first_known(table, MESSAGES_COLUMNS))
    if chat:
        return Columns(chat=require_column(table, chat, "task.messages_column", MESSAGES_COLUMNS, path))
    prompt = require_column(table, prompt_column, "task.prompt_column", PROMPT_COLUMNS, path)
    response = require_column(table, response_column, "task.response_column", RESPONSE_COLUMNS, path)
    added = None if prompt_column else ADDED_COLUMNS.get(prompt)
    return Columns((prompt, added) if added and added in table.column_names else (prompt,), response)


def read_rows(
    path: Path, prompt_column: str | None = None, response_column: str | None = None, messages_column: str | None = None
) -> list[Row]:
    """All rows of a file, of the columns that `choose_columns` gives.

    Raises:
        DataError: a column is missing, or a row has no text in it.
    """
    columns = choose_columns(read_table(path), path, prompt_column, response_column, messages_column)
    return list(_rows(str(path), path.stat().st_mtime_ns, columns))


@lru_cache(maxsize=8)
def _rows(path: str, modified_ns: int, columns: Columns) -> tuple[Row, ...]:
    """Cached for the jobs of one process. A column is taken whole: row by row takes forty times as long."""
    file = Path(path)
    table = read_table(file)
    if columns.chat:
        return tuple(_chat_row(turns, number, file) for number, turns in enumerate(table[columns.chat][:], start=1))
    assert columns.response is not None
    first, *added = columns.prompt
    require_text(table, (first, columns.response), file)
    texts = zip(table[first][:], *(table[name][:] for name in added), strict=True)
    prompts = ("\n\n".join(str(text) for text in parts if not is_blank(text)) for parts in texts)
    return tuple(
        Row(prompt, str(response)) for prompt, response in zip(prompts, table[columns.response][:], strict=True)
    )


def file_source(
    task: TextTaskConfig,
    messages_column: str | None = None,
    keep: Callable[[list[Row]], list[Row]] = list,
) -> Source:
    """The rows of the user's files. Where one for validation or for the test is missing, rows of the training file are
    held out for it.

    keep: gives the rows that are trained on out of those of the training file. Reading raises DataError as read_rows
    and hold_out do.
    """
    named = (task.prompt_column, task.response_column, messages_column)
    own = {"train": task.train_files, "valid": task.valid_files, "test": task.test_files}

    @cache
    def held_out() -> dict[str, list[Row]]:
        assert own["train"] is not None
        splits, rest = dict[str, list[Row]](), read_rows(Path(own["train"]), *named)
        if own["test"] is None:
            rest, splits["test"] = hold_out(rest, task.test_rows or MOST_TEST_ROWS, asked_of)
        rest = keep(rest)
        if own["valid"] is None:
            rest, splits["valid"] = hold_out(rest, task.valid_rows, asked_of)
        return splits | {"train": rest}

    def read(split: str) -> list[Row]:
        path = own[split]
        if path is None or split == "train":
            return held_out()[split]
        rows = read_rows(Path(path), *named)
        return rows[: task.valid_rows] if split == "valid" else rows

    def origin(split: str) -> str:
        path = own[split] or own["train"]
        assert path is not None
        table = read_table(Path(path))
        columns = choose_columns(table, Path(path), *named).told(table.column_names)
        drawn = "" if own[split] else f", drawn at random with seed {SPLIT_SEED}"
        return f"{path}{drawn} ({columns})"

    return Source("files", read, origin)


def _chat_row(messages: Any, number: int, path: Path) -> Row:
    turns = tuple(_turn(message) for message in messages or ())
    source = f"{path}, row {number}"
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise DataError(Problem("a chat must have at least two turns and end with the assistant's", turns, source))
    if is_blank(turns[-1][1]):
        raise DataError(Problem("a chat's last turn must hold text; this one is empty", source=source))
    return Row(prompt=turns[-2][1], response=turns[-1][1], messages=turns)


def _turn(message: Mapping[str, Any]) -> tuple[str, str]:
    """Role and content, also as ShareGPT spells them. A turn without content (a mere tool call) is empty text."""
    role = str(message.get("role") or message.get("from"))
    content = message.get("content") or message.get("value") or ""
    return {"gpt": "assistant", "human": "user"}.get(role, role), str(content)


def asked_of(row: Row) -> tuple[object, ...]:
    """What a model is asked."""
    return row.messages[:-1] if row.messages else (row.prompt,)
