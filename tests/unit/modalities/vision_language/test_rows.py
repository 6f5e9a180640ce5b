"""Rows with pictures from files, and what can't be used of them, told by its row before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tiny_vlm import write_questions

from peftsweep.errors import DataError
from peftsweep.modalities.vision_language.checks import require_rows
from peftsweep.modalities.vision_language.picture import open_picture
from peftsweep.modalities.vision_language.rows import build_source, digest_of_rows, pictures_of
from peftsweep.modalities.vision_language.settings import VqaConfig


def config(path: Path | str, **settings: Any) -> VqaConfig:
    return VqaConfig(name="vqa", train_files=str(path), **settings)


def changed(path: Path, number: int, **columns: Any) -> Path:
    """The file with other columns in one of its rows, counted from 1."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[number - 1] |= columns
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def require(path: Path, **settings: Any) -> None:
    require_rows(config(path, **settings), embedded_model=False, splits=("train", "valid", "test"), hub=False)


def test_paths_are_read_from_the_folder_of_their_file(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    rows = build_source(config(path), embedded_model=False).read("train")
    require(path)
    assert len(rows) == 20
    assert open_picture(pictures_of(rows[0])[0]).mode == "RGB"


def test_a_folder_of_pictures_with_metadata_is_read_as_the_datasets_library_does(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    path.write_text(path.read_text().replace('"image"', '"file_name"'))
    path.rename(tmp_path / "metadata.jsonl")
    found = build_source(config(tmp_path), embedded_model=False)
    assert sum(len(found.read(split)) for split in ("train", "valid", "test")) == 30


def test_pictures_within_a_parquet_file_are_read(tmp_path: Path) -> None:
    write_questions(tmp_path)
    columns = {
        "image": [str(tmp_path / f"{n:02d}.png") for n in range(10)],
        "query": ["What?"] * 10,
        "label": ["a"] * 10,
    }
    features = Features({"image": ImageFeature(), "query": Value("string"), "label": Value("string")})
    Dataset.from_dict(columns, features).to_parquet(tmp_path / "rows.parquet")
    rows = build_source(config(tmp_path / "rows.parquet"), embedded_model=False).read("train")
    with Image.open(tmp_path / "00.png") as own:
        sizes = {open_picture(pictures_of(row)[0]).size for row in rows}
        assert own.size in sizes or len(sizes) == len(rows)


def test_a_row_may_have_several_pictures_and_alternatives_of_an_answer(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    several = [row | {"image": [row["image"], "00.png"], "answer": [row["answer"], "other"]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in several))
    found = build_source(config(path), embedded_model=False).read("train")
    assert {len(pictures_of(row)) for row in found} == {2}
    assert "other" not in {row.response for row in found}


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    path.write_text(path.read_text().replace("image", "shown").replace("question", "asked").replace("answer", "told"))
    with pytest.raises(DataError, match=r"task\.image_column"):
        require(path)
    require(path, image_column="shown", prompt_column="asked", response_column="told")


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "00.png")
    rows = [
        row
        for split in ("train", "valid", "test")
        for row in build_source(config(path), embedded_model=False).read(split)
    ]
    clear = next(row for row in rows if pictures_of(row)[0].name.endswith("00.png"))
    assert np.asarray(open_picture(pictures_of(clear)[0])).min() == 255


def test_a_missing_picture_is_named_with_its_row(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    (tmp_path / "06.png").unlink()
    with pytest.raises(DataError, match=r"existing file.*06\.png.*row 7"):
        require(path)


def test_a_broken_picture_is_named_with_its_row(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    whole = (tmp_path / "06.png").read_bytes()
    (tmp_path / "06.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"readable image.*06\.png.*row 7"):
        require(path)


def test_what_is_no_picture_is_named_with_its_row(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    (tmp_path / "06.png").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"no known format.*row 7"):
        require(path)


def test_a_picture_of_one_pixel_is_named_with_its_row(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    Image.new("RGB", (1, 1)).save(tmp_path / "06.png")
    with pytest.raises(DataError, match=r"2 pixels.*1 x 1.*row 7"):
        require(path)


@pytest.mark.parametrize(("column", "value"), [("image", ""), ("question", None), ("answer", " ")])
def test_a_row_without_a_part_is_named(tmp_path: Path, column: str, value: Any) -> None:
    with pytest.raises(DataError, match=rf"{column}.*row 3"):
        require(changed(write_questions(tmp_path), 3, **{column: value}))


def test_the_same_question_about_the_same_picture_is_in_one_split(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    path.write_text(path.read_text() * 3)
    found = build_source(config(path), embedded_model=False)
    asked = {
        split: {(pictures_of(row), row.prompt) for row in found.read(split)} for split in ("train", "valid", "test")
    }
    assert asked["train"].isdisjoint(asked["valid"] | asked["test"])


def test_the_fingerprint_of_rows_is_of_the_pictures_contents(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    before = digest_of_rows(build_source(config(path), embedded_model=False).read("train"))
    for picture in tmp_path.glob("*.png"):
        Image.new("RGB", (9, 9), "pink").save(picture)
    assert digest_of_rows(build_source(config(path), embedded_model=False).read("train")) != before


def test_someone_must_say_where_rows_are() -> None:
    with pytest.raises(DataError, match="needs your data"):
        build_source(VqaConfig(name="vqa"), embedded_model=False)
