"""Tables of the user's own files, and how rows are held out of them."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from peftsweep.errors import DataError, Problem

SPLIT_SEED = 0  # not the job's: trials of one study, and all seeds, must be judged on the same rows
MOST_TEST_ROWS = 1000  # of those that are held out
LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}

R = TypeVar("R")


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


def require_column(table: Any, name: str | None, key: str, usual: Sequence[str], path: Path) -> str:
    found = name if name in table.column_names else None if name else first_known(table, usual)
    if found is None:
        rule = f"column {name!r}" if name else f"one of the columns {', '.join(usual)}"
        columns = ", ".join(table.column_names)
        raise DataError(Problem(f"the data must have {rule}", columns, str(path), f"Name it with {key}=<column>."))
    return found


def first_known(table: Any, usual: Sequence[str]) -> str | None:
    return next((column for column in usual if column in table.column_names), None)


def require_text(table: Any, columns: Sequence[str], path: Path) -> None:
    """Raises DataError, with the numbers of the rows, where a column is null or blank, or holds lists."""
    for column in columns:
        empty = [number for number, value in enumerate(table[column][:], start=1) if is_blank(value)]
        if empty:
            rule = f"column {column!r} must hold text in every row; it is empty in rows {empty[:5]}"
            raise DataError(Problem(rule, source=str(path)))
        if isinstance(table[0][column], (list, dict)):
            fix = "All turns of a chat belong in one column: task.messages_column=<column>."
            raise DataError(Problem(f"column {column!r} must hold text", table[0][column], str(path), fix))


def is_blank(value: object) -> bool:
    return value is None or not str(value).strip()


def hold_out(rows: Sequence[R], count: int, asked: Callable[[R], object]) -> tuple[list[R], list[R]]:
    """Split rows at random into (kept, held out). At most a fifth is held out, and what asks the same is not kept.

    asked: what a row asks a model. Raises:
        DataError: there are too few rows to hold one out, or none is left.
    """
    if len(rows) < 5:
        rule, fix = "rows to hold some out of must be at least five", "Give task.valid_files and task.test_files."
        raise DataError(Problem(rule, len(rows), "task.train_files", fix))
    count = min(count, len(rows) // 5)
    order = list(range(len(rows)))
    random.Random(SPLIT_SEED).shuffle(order)
    held_out = [rows[i] for i in order[:count]]
    taken = {asked(row) for row in held_out}
    kept = [row for row in rows if asked(row) not in taken]
    if not kept:
        rule = "rows must differ: all ask the same as one that is held out"
        fix = "Give task.valid_files and task.test_files."
        raise DataError(Problem(rule, f"{len(rows)} rows", "task.train_files", fix))
    return kept, held_out
