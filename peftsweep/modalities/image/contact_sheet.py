"""One picture of many: a row for each prompt, with what the base drew, what was learnt, and the photo it should look
like."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from peftsweep.records.pictures import SHEET_EMPTY, SHEET_GAP, SHEET_LINE, SHEET_SIDES

FONT_PIXELS = 14
INK, PAPER = (20, 20, 20), (255, 255, 255)


def draw_contact_sheet(captions: Mapping[str, str], columns: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    """uint8 (h, w, 3): the columns' names, then a row for each caption, with the caption below its pictures.

    captions: key of a row -> its text; columns: name -> key of a row -> uint8 (s, s, 3). A picture that is not there
    leaves its place empty.
    """
    # As large as the largest picture; small ones are scaled up so that they can be seen.
    sides = [len(picture) for pictures in columns.values() for picture in pictures.values()]
    side = min(max([SHEET_SIDES[0], *sides]), SHEET_SIDES[1])
    width = SHEET_GAP + len(columns) * (side + SHEET_GAP)
    font = ImageFont.load_default(FONT_PIXELS)
    lines = [textwrap.wrap(text, int(width / font.getlength("n")), max_lines=3) for text in captions.values()]
    heights = [side + 2 * SHEET_GAP + SHEET_LINE * len(found) for found in lines]
    sheet = Image.new("RGB", (width, SHEET_GAP + SHEET_LINE + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = dict(zip(columns, range(SHEET_GAP, width, side + SHEET_GAP), strict=True))
    for name, left in lefts.items():
        draw.text((left, SHEET_GAP // 2), name, INK, font)
    top = SHEET_GAP + SHEET_LINE
    for key, text, height in zip(captions, lines, heights, strict=True):
        for name, left in lefts.items():
            sheet.paste(_cell(columns[name].get(key), side), (left, top))
        draw.multiline_text((SHEET_GAP, top + side + SHEET_GAP // 2), "\n".join(text), INK, font)
        top += height
    return np.asarray(sheet)


def _cell(picture: np.ndarray | None, side: int) -> Image.Image:
    if picture is None:
        return Image.new("RGB", (side, side), SHEET_EMPTY)
    return Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
