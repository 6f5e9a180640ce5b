"""Rows of tasks on labelled texts, from files of any usual kind, from the hub, or generated."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from peftsweep.errors import DataError, Problem
from peftsweep.modalities.encoder.pocket.scenes import make_claims, make_tagged
from peftsweep.modalities.encoder.settings import ClassifyConfig, LabelTaskConfig, TagConfig
from peftsweep.modalities.load_errors import hub_data_errors
from peftsweep.modalities.tables import MOST_TEST_ROWS, hold_out, read_table, require_column, require_text

TEXT_COLUMNS = ("text", "sentence", "sequence", "seq", "protein", "question")
# Where both are there, they belong together.
PAIRS = (
    ("text", "pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)
LABEL_COLUMNS = ("label", "labels", "class", "target", "fitness", "score")
WORDS_COLUMNS = ("tokens", "words")
TAGS_COLUMNS = ("ner_tags", "tags", "labels", "pos_tags")
EMBEDDED_ROWS = {"train": 4000, "valid": 1000, "test": 400}


@dataclass(frozen=True)
class LabelledRow:
    """text: or the words of one, where each has a label; pair: a second text or nothing; label: a class or a number, or
    the tags of the words."""

    text: str | tuple[str, ...]
    pair: str
    label: str | float | tuple[str, ...]

    @property
    def asked(self) -> tuple[str | tuple[str, ...], str]:
        return self.text, self.pair

    @property
    def tags(self) -> tuple[str, ...]:
        assert isinstance(self.label, tuple)
        return self.label


@dataclass(frozen=True)
class LabelledSource:
    """Where the rows of a task come from. read: the rows of a split; origin: in words; is_number: whether labels are
    numbers, else classes or tags."""

    name: str
    read: Callable[[str], list[LabelledRow]]
    origin: Callable[[str], str]
    is_number: Callable[[], bool]

    def require(self, splits: Sequence[str]) -> None:
        """Read these splits. Raises DataError for a label that no training row has."""
        known = set(self.classes())
        for split in splits:
            for position, row in enumerate(self.read(split), start=1):
                unknown = set(_names_in(row)) - known if known else ()
                if unknown:
                    fix = "Mend the label, or give training rows that have it."
                    source = f"{self.origin(split)}, row {position}"
                    raise DataError(Problem("a label must be one that training rows have", min(unknown), source, fix))

    def classes(self) -> list[str]:
        """Names of the classes or tags, from the training rows, in their order as numbers or as words; none for
        numbers. Raises DataError for a single one."""
        if self.is_number():
            return []
        names = sorted({name for row in self.read("train") for name in _names_in(row)}, key=_order)
        if len(names) < 2:
            rule = "the training rows must have two classes at least"
            fix = "Choose another task.label_column, or task.labels=number."
            raise DataError(Problem(rule, names, self.origin("train"), fix))
        return names


def _names_in(row: LabelledRow) -> tuple[str, ...]:
    return row.label if isinstance(row.label, tuple) else (str(row.label),)


def _order(name: str) -> tuple[int, float, str]:
    return (0, int(name), "") if name.lstrip("-").isdigit() else (1, 0, name)


def digest_of_rows(rows: Sequence[LabelledRow]) -> str:
    """Fingerprint of rows in their order."""
    content = json.dumps([(row.text, row.pair, row.label) for row in rows])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def build_source(config: LabelTaskConfig, *, embedded_model: bool) -> LabelledSource:
    """Raises DataError where nobody says where rows are."""
    if config.train_files:
        return file_source(config)
    if config.source == "embedded" or (config.source == "auto" and embedded_model):
        make = _embedded_tags if isinstance(config, TagConfig) else _embedded_claims
        counts = EMBEDDED_ROWS | {"valid": min(EMBEDDED_ROWS["valid"], config.valid_rows)}
        return LabelledSource(
            "embedded", lambda split: make(split)[: counts[split]], lambda split: "embedded", lambda: False
        )
    if config.dataset:
        return hub_source(config)
    fix = "Give task.train_files=<file>, and task.test_files=<file> if you have one; or task.dataset=<hub id>."
    raise DataError(Problem(f"task={config.name} needs your data", source="task.train_files", fix=fix))


@lru_cache
def _embedded_claims(split: str) -> list[LabelledRow]:
    return [LabelledRow(*claim) for claim in make_claims(split, EMBEDDED_ROWS[split])]


@lru_cache
def _embedded_tags(split: str) -> list[LabelledRow]:
    return [LabelledRow(words, "", tags) for words, tags in make_tagged(split, EMBEDDED_ROWS[split])]


def file_source(config: LabelTaskConfig) -> LabelledSource:
    """The rows of the user's files. Where one for validation or for the test is missing, rows of the training file are
    held out for it."""
    own = {"train": config.train_files, "valid": config.valid_files, "test": config.test_files}

    @cache
    def table_rows(path: str) -> list[LabelledRow]:
        return read_rows(Path(path), config)

    @cache
    def is_number() -> bool:
        assert own["train"] is not None
        return _are_numbers(table_rows(own["train"]), config)

    @cache
    def splits() -> dict[str, list[LabelledRow]]:
        assert own["train"] is not None
        found, rest = dict[str, list[LabelledRow]](), table_rows(own["train"])
        for split, most in (("test", config.test_rows or MOST_TEST_ROWS), ("valid", config.valid_rows)):
            path = own[split]
            if path is None:
                rest, found[split] = hold_out(rest, most, lambda row: row.asked)
            else:
                found[split] = table_rows(path)
        return found | {"train": rest}

    def origin(split: str) -> str:
        return str(own[split] or f"{own['train']}, drawn at random with seed 0")

    return LabelledSource("files", lambda split: _typed(splits()[split], is_number(), origin(split)), origin, is_number)


def hub_source(config: LabelTaskConfig) -> LabelledSource:
    """The rows of a dataset of the hub. Validation rows are held out of its training split, whatever others it has:
    what is published for validation is often what scores are told of."""
    assert config.dataset is not None
    name = " ".join(filter(None, (config.dataset, config.subset)))

    @cache
    def table_rows(split: str) -> list[LabelledRow]:
        import datasets

        fix = "Check the network or HF_HUB_OFFLINE, or give task.train_files and task.test_files."
        with hub_data_errors("the data must be readable from the hub", name, "task.dataset", fix):
            table = datasets.load_dataset(config.dataset, config.subset, split=split)
        return rows_of(table, Path(f"{name} {split}"), config)

    @cache
    def is_number() -> bool:
        return _are_numbers(table_rows("train"), config)

    @cache
    def splits() -> dict[str, list[LabelledRow]]:
        train, valid = hold_out(table_rows("train"), config.valid_rows, lambda row: row.asked)
        return {"train": train, "valid": valid}

    def read(split: str) -> list[LabelledRow]:
        rows = table_rows(config.test_split) if split == "test" else splits()[split]
        return _typed(rows, is_number(), origin(split))

    def origin(split: str) -> str:
        return f"{name}, {config.test_split if split == 'test' else 'train'}"

    return LabelledSource("hub", read, origin, is_number)


def _are_numbers(rows: Sequence[LabelledRow], config: LabelTaskConfig) -> bool:
    if not isinstance(config, ClassifyConfig):
        return False
    return config.labels == "number" or (config.labels == "auto" and all(isinstance(row.label, float) for row in rows))


def read_rows(path: Path, config: LabelTaskConfig) -> list[LabelledRow]:
    """All rows of a file. Raises DataError: a column is missing, or a row has no text or no label in it."""
    return rows_of(read_table(path), path, config)


def rows_of(table: Any, path: Path, config: LabelTaskConfig) -> list[LabelledRow]:
    """See read_rows. path: where the table is from."""
    if isinstance(config, TagConfig):
        return _tagged_rows(table, path, config)
    assert isinstance(config, ClassifyConfig)
    text, pair = _text_columns(table, path, config)
    label = require_column(table, config.label_column, "task.label_column", LABEL_COLUMNS, path)
    require_text(table, (text, label, *([pair] if pair else [])), path)
    names = getattr(table.features[label], "names", None)  # of a dataset that holds classes by number
    pairs = table[pair][:] if pair else [""] * len(table)
    return [
        LabelledRow(str(one), str(other), names[told] if names else told if isinstance(told, float) else str(told))
        for one, other, told in zip(table[text][:], pairs, table[label][:], strict=True)
    ]


def _text_columns(table: Any, path: Path, config: ClassifyConfig) -> tuple[str, str | None]:
    """Of the text, and of a second one where there is one."""
    if config.text_column is None and config.pair_column is None:
        known = next((both for both in PAIRS if set(both) <= set(table.column_names)), None)
        if known:
            return known
    text = require_column(table, config.text_column, "task.text_column", TEXT_COLUMNS, path)
    if config.pair_column is None:
        return text, None
    return text, require_column(table, config.pair_column, "task.pair_column", (), path)


def _tagged_rows(table: Any, path: Path, config: TagConfig) -> list[LabelledRow]:
    """Columns of lists; or of text, parted by blanks, which a csv file can hold."""
    words = require_column(table, config.words_column, "task.words_column", WORDS_COLUMNS, path)
    tags = require_column(table, config.label_column, "task.label_column", TAGS_COLUMNS, path)
    names = getattr(getattr(table.features[tags], "feature", None), "names", None)  # where tags are numbers
    found = []
    for position, (some, told) in enumerate(zip(table[words][:], table[tags][:], strict=True), start=1):
        source = f"{path}, row {position}"
        one, other = _several(some, words, source), _several(told, tags, source)
        if len(one) != len(other):
            rule = "each word must have one tag"
            fix = f"Mend the row, or name other columns with task.words_column and task.label_column (now {tags})."
            raise DataError(Problem(rule, f"{len(one)} words and {len(other)} tags", source, fix))
        found.append(LabelledRow(one, "", tuple(names[int(tag)] for tag in other) if names else other))
    return [row for row in found if row.text]  # CoNLL-2003 has rows without a word


def _several(value: Any, column: str, source: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, (list, tuple)) or any(part is None or not str(part).strip() for part in value):
        fix = 'Such as ["Mia", "sings"], or text with blanks between them.'
        raise DataError(
            Problem(f"column {column!r} must hold a list in every row, none of it empty", value, source, fix)
        )
    return tuple(str(part) for part in value)


def _typed(rows: list[LabelledRow], is_number: bool, source: str) -> list[LabelledRow]:
    """Labels as numbers where the task is about numbers, else as words. Raises DataError with the row of one that is
    none of them."""
    typed = _as_number if is_number else _as_class
    found = []
    for position, row in enumerate(rows, start=1):
        label = row.label if isinstance(row.label, tuple) else typed(row.label)
        if label is None:
            rule = "a label must be a number" if is_number else "a class must be a word or a whole number"
            fix = f"Set task.labels={'classes' if is_number else 'number'}, or another task.label_column."
            raise DataError(Problem(rule, row.label, f"{source}, row {position}", fix))
        found.append(replace(row, label=label))
    return found


def _as_class(label: str | float) -> str | None:
    if isinstance(label, float):
        return str(int(label)) if label.is_integer() else None
    return label


def _as_number(label: str | float) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
