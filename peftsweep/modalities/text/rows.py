"""Rows of text tasks, from files of any usual kind, from the hub, or generated."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from peftsweep.errors import DataError, Problem
from peftsweep.modalities.text.settings import TextTaskConfig

PROMPT_COLUMNS = ("query", "question", "prompt", "instruction", "input")
ADDED_COLUMNS = {"instruction": "input"}  # Alpaca: an instruction, and what it is about where it needs that
RESPONSE_COLUMNS = ("response", "answer", "completion", "output", "target")
MESSAGES_COLUMNS = ("messages", "conversations")
SPLIT_SEED = 0  # not the job's: trials of one study, and all seeds, must be judged on the same rows
MOST_TEST_ROWS = 1000  # of those that are held out
LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


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


@lru_cache(maxsize=8)
def _read_table(path: str, modified: float) -> Any:
    """A `datasets.Dataset` of any supported file; cached for the jobs of one process."""
    import datasets

    file = Path(path)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what is wrong with a file is told once, by us
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
            reason = _broken_line(path) or str(error.__cause__ or error).splitlines()[0]
            raise DataError(Problem(f"the data must be readable ({reason})", str(path))) from error
    if not table:
        raise DataError(Problem("a data file must have rows; this one is empty", str(path)))
    return table


def _broken_line(path: Path) -> str | None:
    """The first line of a jsonl file that is no JSON, which the library doesn't tell."""
    if path.suffix != ".jsonl":
        return None
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line or "null")
            except ValueError as error:
                return f"line {number}: {error}"
    return None


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
    chat = messages_column or (None if is_named else _first_known(table, MESSAGES_COLUMNS))
    if chat:
        return Columns(chat=_require_column(table, chat, "task.messages_column", MESSAGES_COLUMNS, path))
    prompt = _require_column(table, prompt_column, "task.prompt_column", PROMPT_COLUMNS, path)
    response = _require_column(table, response_column, "task.response_column", RESPONSE_COLUMNS, path)
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
    prompts = ("\n\n".join(str(text) for text in parts if not _is_blank(text)) for parts in texts)
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
            rest, splits["test"] = hold_out(rest, task.test_rows or MOST_TEST_ROWS)
        rest = keep(rest)
        if own["valid"] is None:
            rest, splits["valid"] = hold_out(rest, task.valid_rows)
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
    """Raises DataError, with the numbers of the rows, where a column is null or blank, or holds lists."""
    for column in columns:
        empty = [number for number, value in enumerate(table[column][:], start=1) if _is_blank(value)]
        if empty:
            rule = f"column {column!r} must hold text in every row; it is empty in rows {empty[:5]}"
            raise DataError(Problem(rule, source=str(path)))
        if isinstance(table[0][column], (list, dict)):
            fix = "All turns of a chat belong in one column: task.messages_column=<column>."
            raise DataError(Problem(f"column {column!r} must hold text", table[0][column], str(path), fix))


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


def hold_out(rows: Sequence[Row], count: int) -> tuple[list[Row], list[Row]]:
    """Split rows at random into (kept, held out). At most a fifth is held out, and what asks the same is not kept.

    Raises:
        DataError: there are too few rows to hold one out.
    """
    if len(rows) < 5:
        rule, fix = "rows to hold some out of must be at least five", "Give task.valid_files and task.test_files."
        raise DataError(Problem(rule, len(rows), "task.train_files", fix))
    count = min(count, len(rows) // 5)
    order = list(range(len(rows)))
    random.Random(SPLIT_SEED).shuffle(order)
    held_out = [rows[i] for i in order[:count]]
    asked = {_asked(row) for row in held_out}
    return [row for row in rows if _asked(row) not in asked], held_out


def _asked(row: Row) -> tuple[object, ...]:
    return row.messages[:-1] if row.messages else (row.prompt,)
