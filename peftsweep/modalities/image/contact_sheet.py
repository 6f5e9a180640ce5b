"""One picture of many: a row for each prompt, with what the base drew, what was learnt, and the photo it should look
like."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST_CELL, LARGEST_CELL = 192, 384  # pixels, side of one picture
GAP = 8  # pixels
FONT_PIXELS, LINE_PIXELS = 14, 18
INK, PAPER, EMPTY = (20, 20, 20), (255, 255, 255), (232, 232, 232)


def draw_contact_sheet(captions: Mapping[str, str], columns: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    """uint8 (h, w, 3): the columns' names, then a row for each caption, with the caption below its pictures.

    captions: key of a row -> its text; columns: name -> key of a row -> uint8 (s, s, 3). A picture that is not there
    leaves its place empty.
    """
    side = _cell_side(columns)
    width = GAP + len(columns) * (side + GAP)
    font = ImageFont.load_default(FONT_PIXELS)
    lines = [textwrap.wrap(text, int(width / font.getlength("n")), max_lines=3) for text in captions.values()]
    heights = [side + 2 * GAP + LINE_PIXELS * len(found) for found in lines]
    sheet = Image.new("RGB", (width, GAP + LINE_PIXELS + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = dict(zip(columns, range(GAP, width, side + GAP), strict=True))
    for name, left in lefts.items():
        draw.text((left, GAP // 2), name, INK, font)
    top = GAP + LINE_PIXELS
    for key, text, height in zip(captions, lines, heights, strict=True):
        for name, left in lefts.items():
            sheet.paste(_cell(columns[name].get(key), side), (left, top))
        draw.multiline_text((GAP, top + side + GAP // 2), "\n".join(text), INK, font)
        top += height
    return np.asarray(sheet)


def _cell_side(columns: Mapping[str, Mapping[str, np.ndarray]]) -> int:
    """As large as the largest picture; small ones are scaled up so that they can be seen."""
    sides = [len(picture) for pictures in columns.values() for picture in pictures.values()]
    return min(max([SMALLEST_CELL, *sides]), LARGEST_CELL)


def _cell(picture: np.ndarray | None, side: int) -> Image.Image:
    if picture is None:
        return Image.new("RGB", (side, side), EMPTY)
    return Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
