import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from peftsweep.errors import DataError
from peftsweep.modalities.image import photos
from peftsweep.modalities.image.photos import build_source, centre_square, digest_of_photos, random_squares
from peftsweep.modalities.image.settings import ImageGenConfig

RESOLUTION = 16
SPLITS = ("train", "valid", "test")


def save_photo(path: Path, shade: int, size: tuple[int, int] = (20, 20)) -> None:
    Image.new("RGB", size, (shade, 100, 200)).save(path)


def fill_folder(folder: Path, count: int, *, rows: bool = True) -> Path:
    for number in range(count):
        save_photo(folder / f"{number:02d}.png", 10 * number)
    if rows:
        write_rows(folder, [{"file_name": f"{n:02d}.png", "prompt": f"sks cup {n}"} for n in range(count)])
    return folder


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(folder: Path | None = None, **changes: Any) -> ImageGenConfig:
    images = None if folder is None else str(folder)
    return ImageGenConfig(name="image-gen", images=images, resolution=RESOLUTION, **changes)


def prompts_of(config: ImageGenConfig, split: str) -> list[str]:
    return [photo.prompt for photo in build_source(config, embedded_model=False).open(split)]


def test_photos_come_with_the_prompts_of_their_rows(tmp_path: Path) -> None:
    source = build_source(config_of(fill_folder(tmp_path, 6)), embedded_model=False)
    found = [photo for split in SPLITS for photo in source.open(split)]
    assert {photo.name: photo.prompt for photo in found} == {f"{n:02d}.png": f"sks cup {n}" for n in range(6)}
    assert all(photo.pixels[0, 0, 0] == 10 * int(photo.name[:2]) for photo in found)


def test_rows_may_call_the_prompt_text(tmp_path: Path) -> None:
    fill_folder(tmp_path, 3, rows=False)
    write_rows(tmp_path, [{"file_name": f"{n:02d}.png", "text": "a sks cup"} for n in range(3)])
    assert prompts_of(config_of(tmp_path), "train") == ["a sks cup"]


def test_one_prompt_serves_all_photos(tmp_path: Path) -> None:
    config = config_of(fill_folder(tmp_path, 4, rows=False), instance_prompt="a photo of sks cup")
    assert {prompt for split in SPLITS for prompt in prompts_of(config, split)} == {"a photo of sks cup"}


@pytest.mark.parametrize(
    ("count", "sizes"), [(3, (1, 1, 1)), (5, (3, 1, 1)), (10, (6, 2, 2)), (20, (14, 2, 4)), (40, (34, 2, 4))]
)
def test_a_fifth_of_the_photos_is_held_out_and_no_more_than_in_the_reference(
    tmp_path: Path, count: int, sizes: tuple[int, ...]
) -> None:
    source = build_source(config_of(fill_folder(tmp_path, count)), embedded_model=False)
    names = [[photo.name for photo in source.open(split)] for split in SPLITS]
    assert tuple(map(len, names)) == sizes
    assert len({name for split in names for name in split}) == count


def test_the_split_of_twenty_photos_is_the_references(tmp_path: Path) -> None:
    # numpy.random.seed(0); numpy.random.shuffle(numpy.arange(20)): the last 4 are its test photos, 2 before them valid.
    config = config_of(fill_folder(tmp_path, 20))
    assert prompts_of(config, "test") == [f"sks cup {number}" for number in (3, 0, 15, 12)]
    assert prompts_of(config, "valid") == [f"sks cup {number}" for number in (16, 11)]


def test_more_photos_can_be_held_out(tmp_path: Path) -> None:
    config = config_of(fill_folder(tmp_path, 12), valid_photos=3, test_photos=6)
    assert [len(prompts_of(config, split)) for split in SPLITS] == [3, 3, 6]


def test_no_split_but_the_one_asked_for_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def spy(path: Path, modified_ns: int, resolution: int) -> tuple[str, np.ndarray]:
        opened.append(path.name)
        return path.name, np.zeros((resolution, resolution, 3), dtype=np.uint8)

    monkeypatch.setattr(photos, "_read_file", spy)
    source = build_source(config_of(fill_folder(tmp_path, 10)), embedded_model=False)
    assert opened == []
    names = [photo.name for photo in source.open("valid")]
    assert opened == names


def test_an_embedded_model_gets_the_drawn_photos() -> None:
    source = build_source(config_of(), embedded_model=True)
    assert source.name == "embedded"
    assert [len(source.open(split)) for split in SPLITS] == [14, 4, 8]
    fewer = build_source(config_of(valid_photos=2, test_photos=3), embedded_model=True)
    assert [len(fewer.open(split)) for split in SPLITS] == [14, 2, 3]
    assert all(photo.pixels.shape == (RESOLUTION, RESOLUTION, 3) for photo in source.open("valid"))


def test_the_shorter_side_is_scaled_to_the_resolution(tmp_path: Path) -> None:
    fill_folder(tmp_path, 3)
    for number in range(3):
        save_photo(tmp_path / f"{number:02d}.png", 0, size=(100, 50))
    photo = build_source(config_of(tmp_path), embedded_model=False).open("train")[0]
    assert photo.pixels.shape == (RESOLUTION, 2 * RESOLUTION, 3)


def test_the_middle_of_a_photo_is_cut_out() -> None:
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, 2:6] = 255
    assert centre_square(pixels).shape == (4, 4, 3)
    assert (centre_square(pixels) == 255).all()
    assert (centre_square(pixels.swapaxes(0, 1)) == 255).all()


def test_random_squares_are_cut_anywhere_and_mirrored_by_turns() -> None:
    pixels = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (4, 40, 3))
    squares = random_squares(pixels, 16, seed=0)
    assert squares.shape == (16, 4, 4, 3)
    steps = np.diff(squares[:, 0, :, 0].astype(int))
    assert (steps[0::2] == 1).all()
    assert (steps[1::2] == -1).all()
    assert len({int(square[0, :, 0].min()) for square in squares}) > 8
    assert (squares == random_squares(pixels, 16, seed=0)).all()


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 40), "black")
    exif = image.getexif()
    exif[274] = 6  # Orientation: turn by 90 degrees to see it upright
    for number in range(3):
        image.save(tmp_path / f"{number:02d}.jpg", exif=exif)
    photo = build_source(config_of(tmp_path, instance_prompt="sks cup"), embedded_model=False).open("train")[0]
    assert photo.pixels.shape == (RESOLUTION, 2 * RESOLUTION, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    for number in range(3):
        options = {"transparency": 0} if mode == "P" else {}
        Image.new(mode, (20, 20)).save(tmp_path / f"{number:02d}.png", **options)
    photo = build_source(config_of(tmp_path, instance_prompt="sks cup"), embedded_model=False).open("train")[0]
    assert (photo.pixels == 255).all()


def test_the_digest_is_that_of_photos_and_prompts(tmp_path: Path) -> None:
    fill_folder(tmp_path, 5)

    def digest() -> str:
        return digest_of_photos(build_source(config_of(tmp_path), embedded_model=False).open("train"))

    before = digest()
    assert digest() == before
    write_rows(tmp_path, [{"file_name": f"{n:02d}.png", "prompt": f"another cup {n}"} for n in range(5)])
    reworded = digest()
    for number in range(5):
        save_photo(tmp_path / f"{number:02d}.png", 10 * number + 1)
    assert len({before, reworded, digest()}) == 3


def no_folder(folder: Path) -> ImageGenConfig:
    return config_of(folder / "elsewhere")


def no_images(folder: Path) -> ImageGenConfig:
    (folder / "notes.txt").write_text("none here")
    return config_of(folder, instance_prompt="sks cup")


def no_prompts(folder: Path) -> ImageGenConfig:
    return config_of(fill_folder(folder, 5, rows=False))


def one_photo(folder: Path) -> ImageGenConfig:
    return config_of(fill_folder(folder, 1))


def too_many_held_out(folder: Path) -> ImageGenConfig:
    return config_of(fill_folder(folder, 5), valid_photos=1, test_photos=4)


def row_without_file(folder: Path) -> ImageGenConfig:
    (fill_folder(folder, 5) / "03.png").unlink()
    return config_of(folder)


def row_of_a_file_elsewhere(folder: Path) -> ImageGenConfig:
    save_photo(folder.parent / "outside.png", 0)
    write_rows(fill_folder(folder, 5), [{"file_name": str(folder.parent / "outside.png"), "prompt": "a cup"}])
    return config_of(folder)


def photo_without_row(folder: Path) -> ImageGenConfig:
    save_photo(fill_folder(folder, 5) / "05.png", 50)
    return config_of(folder)


def row_without_prompt(folder: Path) -> ImageGenConfig:
    write_rows(fill_folder(folder, 5), [{"file_name": "00.png"}])
    return config_of(folder)


def broken_row(folder: Path) -> ImageGenConfig:
    (fill_folder(folder, 5) / "metadata.jsonl").write_text('{"file_name": "00.png"\n')
    return config_of(folder)


BAD_FOLDERS: dict[str, tuple[Callable[[Path], ImageGenConfig], str]] = {
    "no folder": (no_folder, "existing folder of photos"),
    "no images in it": (no_images, "end with one of .jpg"),
    "neither rows nor a prompt": (no_prompts, "needs prompts: a metadata.jsonl"),
    "one photo only": (one_photo, "photos must be at least 3"),
    "all held out": (too_many_held_out, "photos must be at least 6"),
    "a row without its file": (row_without_file, "must be a file beside it, got '03.png'"),
    "a row of a file elsewhere": (row_of_a_file_elsewhere, "must be a file beside it"),
    "a photo without a row": (photo_without_row, "1 photos have no row: 05.png"),
    "a row without a prompt": (row_without_prompt, "a prompt or text"),
    "a row that is no JSON": (broken_row, "must be JSON"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_cant_be_used_is_refused_before_a_photo_is_opened(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = BAD_FOLDERS[case]
    (tmp_path / "photos").mkdir()
    config = make(tmp_path / "photos")

    def refuse(path: Path, resolution: int) -> None:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(photos, "_read_file", refuse)
    with pytest.raises(DataError, match=message):
        build_source(config, embedded_model=False)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    fill_folder(tmp_path, 3)
    for content in (b"", b"no image at all", (tmp_path / "00.png").read_bytes()[:40]):
        for number in range(3):
            (tmp_path / f"{number:02d}.png").write_bytes(content)
        with pytest.raises(DataError, match=r"readable image.*\d\d\.png"):
            build_source(config_of(tmp_path), embedded_model=False).open("train")


@pytest.fixture(params=["stored", "by path"])
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A data set of six photos, in place of the hub's."""
    paths = [fill_folder(tmp_path, 6) / f"{number:02d}.png" for number in range(6)]
    stored = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    column = stored if request.param == "stored" else list(map(str, paths))
    table = datasets.Dataset.from_dict({"image": column}, features=datasets.Features({"image": datasets.Image()}))
    monkeypatch.setattr(datasets, "load_dataset", lambda dataset, split: table)
    photos._hub_column.cache_clear()


@pytest.mark.usefixtures("hub")
def test_hub_photos_get_the_prompts_of_the_configuration_in_order() -> None:
    source = build_source(config_of(prompts=[f"sks cup {number}" for number in range(6)]), embedded_model=False)
    found = [photo for split in SPLITS for photo in source.open(split)]
    assert source.name == "hub"
    assert {photo.prompt: int(photo.pixels[0, 0, 0]) for photo in found} == {f"sks cup {n}": 10 * n for n in range(6)}


@pytest.mark.usefixtures("hub")
def test_fewer_prompts_than_photos_are_refused() -> None:
    with pytest.raises(DataError, match=r"the data set has 6, got 5 \(from task.prompts\)"):
        build_source(config_of(prompts=["sks cup"] * 5), embedded_model=False)


def test_an_unreachable_hub_is_told_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(dataset: str, split: str) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    photos._hub_column.cache_clear()
    with pytest.raises(DataError, match=r"readable from the hub.*offline.*task.source=embedded"):
        build_source(config_of(), embedded_model=False)


def test_real_photos_are_split_and_scaled() -> None:
    folder = os.environ.get("PEFTSWEEP_PHOTOS")
    if not folder:
        pytest.skip("PEFTSWEEP_PHOTOS names no folder of real photos with metadata.jsonl")
    source = build_source(config_of(Path(folder)), embedded_model=False)
    found = [photo for split in SPLITS for photo in source.open(split)]
    assert len(found) >= 3
    assert all(min(photo.pixels.shape[:2]) == RESOLUTION for photo in found)
    assert len({photo.digest for photo in found}) == len(found)
