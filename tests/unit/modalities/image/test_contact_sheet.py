import numpy as np

from peftsweep.modalities.image.contact_sheet import FONT_PIXELS, draw_contact_sheet
from peftsweep.records.pictures import SHEET_EMPTY as EMPTY
from peftsweep.records.pictures import SHEET_GAP as GAP
from peftsweep.records.pictures import SHEET_LINE as LINE_PIXELS
from peftsweep.records.pictures import SHEET_SIDES

SMALLEST_CELL = SHEET_SIDES[0]
FIRST_TOP = GAP + LINE_PIXELS


def square(shade: int, side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), shade, dtype=np.uint8)


def middle(sheet: np.ndarray, column: int, top: int = FIRST_TOP, side: int = SMALLEST_CELL) -> list[int]:
    found: list[int] = sheet[top + side // 2, GAP + column * (side + GAP) + side // 2].tolist()
    return found


def test_small_pictures_are_scaled_up_side_by_side() -> None:
    sheet = draw_contact_sheet({"a": "sks cup"}, {"base": {"a": square(10)}, "adapted": {"a": square(200)}})
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == GAP + 2 * (SMALLEST_CELL + GAP)
    assert (middle(sheet, 0), middle(sheet, 1)) == ([10] * 3, [200] * 3)


def test_large_pictures_are_not_enlarged_and_very_large_ones_reduced() -> None:
    widths = [draw_contact_sheet({"a": ""}, {"base": {"a": square(0, side)}}).shape[1] for side in (256, 1024)]
    assert widths == [256 + 2 * GAP, 384 + 2 * GAP]


def test_each_caption_is_a_row() -> None:
    rows = {"a": "first", "b": "second"}
    sheet = draw_contact_sheet(rows, {"base": {"a": square(10), "b": square(90)}})
    row_height = SMALLEST_CELL + 2 * GAP + LINE_PIXELS
    assert len(sheet) == FIRST_TOP + 2 * row_height
    assert middle(sheet, 0, FIRST_TOP + row_height) == [90] * 3


def test_a_picture_that_is_not_there_leaves_its_place_empty() -> None:
    sheet = draw_contact_sheet({"a": "", "b": ""}, {"base": {"a": square(0)}, "photo": {"a": square(9)}})
    assert middle(sheet, 1) == [9] * 3
    assert middle(sheet, 0, FIRST_TOP + SMALLEST_CELL + 2 * GAP) == list(EMPTY)


def test_names_and_captions_are_written_within_the_sheet() -> None:
    caption = "sks cup on a very long table with all kinds of things that need more than a line " * 5
    sheet = draw_contact_sheet({"a": caption}, {"base": {"a": square(255)}, "photo": {"a": square(255)}})
    dark = (sheet < 128).all(axis=2)
    bottom = FIRST_TOP + SMALLEST_CELL
    assert len(sheet) == bottom + 2 * GAP + 3 * LINE_PIXELS
    assert dark[:FIRST_TOP].sum() > FONT_PIXELS
    assert dark[bottom:].any(axis=1).sum() > 2 * FONT_PIXELS
    assert not dark[:, -3:].any()
    assert not dark[-2:].any()
