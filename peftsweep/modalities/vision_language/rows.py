"""Rows of tasks on pictures: from files of any usual kind, from the hub, or generated.

    {"image": "images/07.png", "question": "What colour is the star?", "answer": "red"}

A path is read from the folder of its file. A folder with a metadata.jsonl, as the `datasets` library's image folders
have one, is read so too. A row may have several pictures: a list of paths.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from peftsweep.errors import DataError, Problem
from peftsweep.modalities.load_errors import hub_data_errors
from peftsweep.modalities.tables import MOST_TEST_ROWS, SPLIT_SEED, hold_out, is_blank, read_table, require_column
from peftsweep.modalities.text.rows import PROMPT_COLUMNS, RESPONSE_COLUMNS, Row, Source
from peftsweep.modalities.vision_language.picture import Picture
from peftsweep.modalities.vision_language.pocket.scenes import Scene, draw, make_questions
from peftsweep.modalities.vision_language.settings import VqaConfig

IMAGE_COLUMNS = ("image", "file_name", "images", "image_path", "path", "picture")
ANSWER_COLUMNS = (*RESPONSE_COLUMNS, "label")
METADATA_FILE = "metadata.jsonl"
# Pictures, and questions about each: several answers of one picture cost its drawing once.
EMBEDDED_PICTURES = {"train": (800, 5), "valid": (100, 4), "test": (100, 4)}


@dataclass(frozen=True)
class PictureRow(Row):
    """A question about pictures, and its answer."""

    pictures: tuple[Picture, ...] = ()


def build_source(config: VqaConfig, *, embedded_model: bool) -> Source:
    """Raises DataError where nobody says where rows are."""
    if config.train_files:
        return file_source(config)
    if config.source == "embedded" or (config.source == "auto" and embedded_model and not config.dataset):
        return Source("embedded", partial(_embedded_rows, most_valid=config.valid_rows), lambda split: "embedded")
    if config.dataset:
        return hub_source(config)
    fix = "Give task.train_files=<file>, and task.test_files=<file> if you have one; or task.dataset=<hub id>."
    raise DataError(Problem(f"task={config.name} needs your data", source="task.train_files", fix=fix))


def _embedded_rows(split: str, most_valid: int) -> list[Row]:
    rows = list(_drawn_rows(split))
    return rows[:most_valid] if split == "valid" else rows


@lru_cache
def _drawn_rows(split: str) -> tuple[Row, ...]:
    return tuple(
        PictureRow(asked, answer, pictures=(drawn_picture(split, number, scene),))
        for number, scene, asked, answer in make_questions(split, *EMBEDDED_PICTURES[split])
    )


def drawn_picture(split: str, number: int, scene: Scene) -> Picture:
    return Picture(f"{split} {number}: {scene.text}", "embedded", partial(_drawn, scene, number))


@lru_cache(maxsize=4096)
def _drawn(scene: Scene, number: int) -> bytes:
    """A PNG, kept for the jobs of one process."""
    stream = io.BytesIO()
    Image.fromarray(draw(scene, number)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def file_source(config: VqaConfig) -> Source:
    """The rows of the user's files. Where one for validation or for the test is missing, rows of the training file are
    held out for it."""
    own = {"train": config.train_files, "valid": config.valid_files, "test": config.test_files}

    @cache
    def splits() -> dict[str, list[Row]]:
        assert own["train"] is not None
        found, rest = dict[str, list[Row]](), read_rows(Path(own["train"]), config)
        for split, most in (("test", config.test_rows or MOST_TEST_ROWS), ("valid", config.valid_rows)):
            path = own[split]
            if path is None:
                rest, found[split] = hold_out(rest, most, _asked_of)
            else:
                found[split] = read_rows(Path(path), config)
        found["valid"] = found["valid"][: config.valid_rows]
        return found | {"train": rest}

    def origin(split: str) -> str:
        return str(own[split] or f"{own['train']}, drawn at random with seed {SPLIT_SEED}")

    return Source("files", lambda split: splits()[split], origin)


def hub_source(config: VqaConfig) -> Source:
    """The rows of a dataset of the hub; those for validation are held out of its training split."""
    assert config.dataset is not None
    name = " ".join(filter(None, (config.dataset, config.subset)))

    @cache
    def table_rows(split: str) -> list[Row]:
        import datasets

        fix = "Check the network or HF_HUB_OFFLINE, or give task.train_files and task.test_files."
        with hub_data_errors("the data must be readable from the hub", name, "task.dataset", fix):
            table = datasets.load_dataset(config.dataset, config.subset, split=split)
        return rows_of(table, Path(f"{name} {split}"), config)

    @cache
    def held_out() -> dict[str, list[Row]]:
        train, valid = hold_out(table_rows(config.train_split), config.valid_rows, _asked_of)
        return {"train": train, "valid": valid}

    def read(split: str) -> list[Row]:
        return table_rows(config.test_split) if split == "test" else held_out()[split]

    def origin(split: str) -> str:
        return f"{name}, {config.test_split if split == 'test' else config.train_split}"

    return Source("hub", read, origin)


def _asked_of(row: Row) -> tuple[object, ...]:
    return (*pictures_of(row), row.prompt)


def pictures_of(row: Row) -> tuple[Picture, ...]:
    return row.pictures if isinstance(row, PictureRow) else ()


def digest_of_rows(rows: Sequence[Row]) -> str:
    """Fingerprint of rows in their order, the contents of their pictures too."""
    digest = hashlib.sha256()
    for row in rows:
        for text in (row.prompt, row.response, *(picture.digest for picture in pictures_of(row))):
            digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def read_rows(path: Path, config: VqaConfig) -> list[Row]:
    """All rows of a file, or of a folder's metadata.jsonl. Raises DataError: a column is missing, or a row lacks a
    question, an answer or a picture; pictures are not opened."""
    if path.is_dir() and (path / METADATA_FILE).is_file():
        path = path / METADATA_FILE
    return rows_of(read_table(path), path, config)


def rows_of(table: Any, path: Path, config: VqaConfig) -> list[Row]:
    """See read_rows. path: where the table is from, and the paths of its pictures begin."""
    image = require_column(table, config.image_column, "task.image_column", IMAGE_COLUMNS, path)
    asked = require_column(table, config.prompt_column, "task.prompt_column", PROMPT_COLUMNS, path)
    answer = require_column(table, config.response_column, "task.response_column", ANSWER_COLUMNS, path)
    encoded = _undecoded(table, image)
    return [
        PictureRow(
            _text(question, asked, f"{path}, row {number}"),
            _text(told, answer, f"{path}, row {number}"),
            pictures=tuple(_pictures(shown, path.parent, image, f"{path}, row {number}")),
        )
        for number, (shown, question, told) in enumerate(
            zip(encoded[image], table[asked][:], table[answer][:], strict=True), start=1
        )
    ]


def _undecoded(table: Any, column: str) -> Any:
    """Pictures of a dataset as it stores them."""
    import datasets

    if isinstance(table.features[column], datasets.Image):
        return table.cast_column(column, datasets.Image(decode=False))
    return table


def _text(value: Any, column: str, source: str) -> str:
    """A list of alternatives stands for its first."""
    value = value[0] if isinstance(value, list) and value else value
    if is_blank(value) or isinstance(value, list | dict):
        raise DataError(Problem(f"column {column!r} must hold text in every row", value, source))
    return str(value).strip()


def _pictures(value: Any, folder: Path, column: str, source: str) -> Iterator[Picture]:
    values = value if isinstance(value, list) else [value]
    if not values or any(is_blank(one) for one in values):
        rule = f"column {column!r} must name a picture in every row"
        raise DataError(Problem(rule, value, source, "Give its path, or take the row away."))
    for one in values:
        path, data = (one.get("path"), one.get("bytes")) if isinstance(one, dict) else (str(one), None)
        if data is not None:
            name = f"{path or source} {hashlib.sha256(data).hexdigest()[:8]}"  # many have no path, or all the same
            yield Picture(name, source, partial(bytes, data))
        else:
            found = folder / Path(path or "").expanduser()
            yield Picture(str(found), source, partial(_read_file, found, source))


def _read_file(path: Path, source: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fix = "Paths are read from the folder of the file that names them. Mend the path, or take the row away."
        raise DataError(
            Problem(f"a picture must be an existing file ({error.strerror})", str(path), source, fix)
        ) from error
