"""Rows of tasks on labelled texts, from files of any usual kind, or generated."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from peftsweep.errors import DataError, Problem
from peftsweep.modalities.encoder.pocket.scenes import make_claims
from peftsweep.modalities.encoder.settings import ClassifyConfig
from peftsweep.modalities.tables import (
    MOST_TEST_ROWS,
    first_known,
    hold_out,
    read_table,
    require_column,
    require_text,
)

TEXT_COLUMNS = ("text", "sentence", "sentence1", "premise", "question", "sequence", "protein")
PAIR_COLUMNS = ("pair", "sentence2", "hypothesis", "question2")
LABEL_COLUMNS = ("label", "labels", "class", "target", "fitness", "score")
EMBEDDED_ROWS = {"train": 4000, "valid": 1000, "test": 400}


@dataclass(frozen=True)
class LabelledRow:
    """A text, a second one or none, and what is to be told of them."""

    text: str
    pair: str
    label: str | float


@dataclass(frozen=True)
class LabelledSource:
    """Where the rows of a task come from. read: the rows of a split; origin: in words; number: whether labels are
    numbers, else classes."""

    name: str
    read: Callable[[str], list[LabelledRow]]
    origin: Callable[[str], str]
    number: Callable[[], bool]

    def require(self, splits: Sequence[str]) -> None:
        """Read these splits. Raises DataError for a label that no training row has."""
        known = set(self.classes())
        for split in splits:
            for position, row in enumerate(self.read(split), start=1):
                if known and row.label not in known:
                    fix = "Mend the label, or give training rows of this class."
                    source = f"{self.origin(split)}, row {position}"
                    raise DataError(Problem("a label must be one that training rows have", row.label, source, fix))

    def classes(self) -> list[str]:
        """Names of the classes, from the training rows, in their order as numbers or as words; none for numbers.
        Raises DataError for a single one."""
        if self.number():
            return []
        names = sorted({str(row.label) for row in self.read("train")}, key=_order)
        if len(names) < 2:
            rule = "the training rows must have two classes at least"
            fix = "Choose another task.label_column, or task.labels=number."
            raise DataError(Problem(rule, names, self.origin("train"), fix))
        return names


def _order(name: str) -> tuple[int, float, str]:
    return (0, int(name), "") if name.lstrip("-").isdigit() else (1, 0, name)


def digest_of_rows(rows: Sequence[LabelledRow]) -> str:
    """Fingerprint of rows in their order."""
    content = json.dumps([(row.text, row.pair, row.label) for row in rows])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def build_source(config: ClassifyConfig, *, embedded_model: bool) -> LabelledSource:
    """Raises DataError where nobody says where rows are."""
    if config.train_files:
        return file_source(config)
    if config.source == "embedded" or (config.source == "auto" and embedded_model):
        return LabelledSource("embedded", _embedded_rows, lambda split: "embedded", lambda: False)
    fix = "Give task.train_files=<file>, and task.test_files=<file> if you have one."
    raise DataError(Problem(f"task={config.name} needs your data", source="task.train_files", fix=fix))


@lru_cache
def _embedded_rows(split: str) -> list[LabelledRow]:
    return [LabelledRow(*claim) for claim in make_claims(split, EMBEDDED_ROWS[split])]


def file_source(config: ClassifyConfig) -> LabelledSource:
    """The rows of the user's files. Where one for validation or for the test is missing, rows of the training file are
    held out for it."""
    own = {"train": config.train_files, "valid": config.valid_files, "test": config.test_files}

    @cache
    def table_rows(path: str) -> list[LabelledRow]:
        return read_rows(Path(path), config)

    @cache
    def number() -> bool:
        if config.labels != "auto":
            return config.labels == "number"
        assert own["train"] is not None
        labels = [row.label for row in table_rows(own["train"])]
        return all(isinstance(label, float) for label in labels)

    @cache
    def splits() -> dict[str, list[LabelledRow]]:
        assert own["train"] is not None
        found, rest = dict[str, list[LabelledRow]](), table_rows(own["train"])
        for split, most in (("test", config.test_rows or MOST_TEST_ROWS), ("valid", config.valid_rows)):
            path = own[split]
            if path is None:
                rest, found[split] = hold_out(rest, most, lambda row: (row.text, row.pair))
            else:
                found[split] = table_rows(path)
        return found | {"train": rest}

    def origin(split: str) -> str:
        return str(own[split] or f"{own['train']}, drawn at random with seed 0")

    return LabelledSource("files", lambda split: _typed(splits()[split], number(), origin(split)), origin, number)


def read_rows(path: Path, config: ClassifyConfig) -> list[LabelledRow]:
    """All rows of a file. Raises DataError: a column is missing, or a row has no text or no label in it."""
    table = read_table(path)
    text = require_column(table, config.text_column, "task.text_column", TEXT_COLUMNS, path)
    label = require_column(table, config.label_column, "task.label_column", LABEL_COLUMNS, path)
    named = config.pair_column
    pair = (
        require_column(table, named, "task.pair_column", PAIR_COLUMNS, path)
        if named
        else first_known(table, PAIR_COLUMNS)
    )
    require_text(table, (text, label, *([pair] if pair else [])), path)
    names = getattr(table.features[label], "names", None)  # of a dataset that holds classes by number
    pairs = table[pair][:] if pair else [""] * len(table)
    return [
        LabelledRow(str(one), str(other), names[told] if names else told if isinstance(told, float) else str(told))
        for one, other, told in zip(table[text][:], pairs, table[label][:], strict=True)
    ]


def _typed(rows: list[LabelledRow], is_number: bool, source: str) -> list[LabelledRow]:
    """Labels as numbers where the task is about numbers, else as words. Raises DataError with the row of one that is no
    number."""
    if not is_number:
        return [LabelledRow(row.text, row.pair, str(row.label)) for row in rows]
    found = []
    for position, row in enumerate(rows, start=1):
        value = _as_number(row.label)
        if value is None:
            fix = "Set task.labels=classes, or another task.label_column."
            raise DataError(Problem("a label must be a number", row.label, f"{source}, row {position}", fix))
        found.append(LabelledRow(row.text, row.pair, value))
    return found


def _as_number(label: Any) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
