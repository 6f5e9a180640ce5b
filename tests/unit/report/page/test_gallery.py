"""Contact sheets cut into pictures, so that methods stand beside each other."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from job_writer import write_job
from PIL import Image

from peftsweep.modalities.image.contact_sheet import draw_contact_sheet
from peftsweep.report.analysis.groups import compare
from peftsweep.report.page.gallery import PICTURE_PIXELS, Gallery, cut_sheet, read_gallery
from peftsweep.report.sources import load_jobs

CAPTIONS = {"00-0": "sks toy on sand", "01-0": "sks toy at sea", "sample-00": "a toy in a box"}
COLORS = {"photo": (250, 220, 0), "base": (90, 60, 30), "lora": (10, 90, 200), "oft": (20, 160, 60)}
NEAR = 12  # of 255: WebP keeps colours about


def square(color: tuple[int, int, int], side: int) -> np.ndarray:
    return np.full((side, side, 3), color, dtype=np.uint8)


def sheet_of(method: str, *, side: int = 64, captions: dict[str, str] = CAPTIONS, base: bool = True) -> Image.Image:
    """As the task draws it: a sample has no photo."""
    columns = {"adapted": {key: square(COLORS[method], side) for key in captions}}
    if base:
        columns = {"base": {key: square(COLORS["base"], side) for key in captions}, **columns}
    columns["photo"] = {key: square(COLORS["photo"], side) for key in captions if not key.startswith("sample")}
    return Image.fromarray(draw_contact_sheet(captions, columns))


def write_image_job(folder: Path, method: str, sheet: Image.Image) -> None:
    known = {"key": "test/dino_similarity", "item_key": "similarity", "task": "image-gen"}
    write_job(folder, method, (0.5, 0.6), **known)  # type: ignore[arg-type]
    items = [{"prompt": CAPTIONS[f"0{n}-0"], "photo": f"test {n}", "similarity": 0.5 + 0.1 * n} for n in (0, 0, 1)]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    sheet.save(folder / "contact_sheet.png")


def gallery_of(folder: Path) -> Gallery:
    loaded = load_jobs(folder)
    return read_gallery(compare(loaded).groups[0].rows, loaded.jobs)


def color_of(source: str) -> tuple[int, ...]:
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB")
    assert picture.size == (PICTURE_PIXELS, PICTURE_PIXELS)
    return tuple(int(value) for value in np.asarray(picture).reshape(-1, 3).mean(axis=0))


@pytest.mark.parametrize("side", [64, 192, 256, 500])
@pytest.mark.parametrize("base", [True, False])
def test_a_sheet_is_cut_where_the_task_put_its_pictures(side: int, base: bool) -> None:
    cut = cut_sheet(sheet_of("lora", side=side, base=base))
    assert cut is not None
    assert list(cut.columns) == (["base", "adapted", "photo"] if base else ["adapted", "photo"])
    colors = {"base": COLORS["base"], "adapted": COLORS["lora"], "photo": COLORS["photo"]}
    for name, pictures in cut.columns.items():
        found = [picture.getcolors() if picture else None for picture in pictures]
        whole = [(PICTURE_PIXELS**2, colors[name])]
        assert found == [whole, whole, None if name == "photo" else whole]


def test_the_photo_and_the_base_are_shown_once_and_the_methods_beside_them(tmp_path: Path) -> None:
    for method in ("lora", "oft"):
        write_image_job(tmp_path / method, method, sheet_of(method))
    gallery = gallery_of(tmp_path)
    assert gallery.columns == ("photo", "base", "lora", "oft")
    assert not gallery.whole
    assert len(gallery.prompts) == 3
    for name, source in zip(gallery.columns, gallery.prompts[0].pictures, strict=True):
        assert color_of(source) == pytest.approx(COLORS[name], abs=NEAR)
    assert gallery.prompts[2].pictures[0] == ""


def test_prompts_with_a_photo_are_told_as_text_and_others_as_the_sheet_writes_them(tmp_path: Path) -> None:
    write_image_job(tmp_path / "lora", "lora", sheet_of("lora"))
    prompts = gallery_of(tmp_path).prompts
    assert [prompt.text for prompt in prompts] == ["sks toy on sand", "sks toy at sea", ""]
    assert [bool(prompt.words) for prompt in prompts] == [False, False, True]


def test_a_sheet_that_cannot_stand_beside_the_others_is_kept_whole(tmp_path: Path) -> None:
    write_image_job(tmp_path / "lora", "lora", sheet_of("lora"))
    write_image_job(tmp_path / "oft", "oft", sheet_of("oft", captions={"00-0": "sks toy on sand"}))
    gallery = gallery_of(tmp_path)
    assert gallery.columns == ("photo", "base", "lora")
    assert [sheet["name"] for sheet in gallery.whole] == ["oft"]


def test_a_sheet_with_a_prompt_of_several_lines_is_kept_whole() -> None:
    assert cut_sheet(sheet_of("lora", captions={"00-0": "sks toy " * 20, "01-0": "sks toy"})) is None
