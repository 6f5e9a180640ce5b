"""A drawing as PNG, for slides and for places that show no SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftsweep.report.figures.canvas import COLORS, FILE_MARGIN, XY, Area, Canvas, Line, Text

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

PNG_SCALE, SMOOTHING = 2, 2  # pixels of the file for one of the drawing; and of what is drawn for one of the file
SCALE = PNG_SCALE * SMOOTHING
OUTLINE = 1.5  # pixels of the drawing
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}  # Pillow's words: left, middle or right of the baseline


def save_png(canvas: Canvas, path: Path) -> None:
    """Write a drawing, light, with a margin, at twice its size."""
    from PIL import Image
    from PIL.ImageDraw import Draw

    size = (round((canvas.width + 2 * FILE_MARGIN) * SCALE), round((canvas.height + 2 * FILE_MARGIN) * SCALE))
    image = Image.new("RGB", size, COLORS["paper"])
    draw = Draw(image)
    for item in canvas.items:
        if isinstance(item, Line):
            _draw_line(draw, item)
        elif isinstance(item, Area):
            _draw_area(draw, item)
        else:
            _draw_text(draw, item)
    image.reduce(SMOOTHING).save(path, compress_level=4)


def _at(points: Iterable[XY]) -> list[XY]:
    return [((x + FILE_MARGIN) * SCALE, (y + FILE_MARGIN) * SCALE) for x, y in points]


def _mixed(color: str, opacity: float) -> tuple[int, ...]:
    """What a colour looks like on paper: Pillow draws opaque."""
    from PIL.ImageColor import getrgb

    pairs = zip(getrgb(COLORS[color]), getrgb(COLORS["paper"]), strict=True)
    return tuple(round(opacity * one + (1 - opacity) * other) for one, other in pairs)


def _draw_line(draw: ImageDraw, line: Line) -> None:
    for piece in dashes(line.points, line.dash):
        draw.line(_at(piece), _mixed(line.color, line.opacity), max(1, round(line.width * SCALE)), "curve")


def _draw_area(draw: ImageDraw, area: Area) -> None:
    color = _mixed(area.color, area.opacity)
    draw.polygon(_at(area.points), _mixed("paper", 1.0) if area.hollow else color, color, round(OUTLINE * SCALE))


def _draw_text(draw: ImageDraw, text: Text) -> None:
    from PIL.ImageFont import load_default

    font = load_default(text.size * SCALE)
    halo = round(OUTLINE * SCALE) if text.halo else 0
    where = _at([(text.x, text.y)])[0]
    draw.text(
        where, text.text, COLORS[text.color], font, ANCHORS[text.anchor], stroke_width=halo, stroke_fill=COLORS["paper"]
    )


def dashes(points: Sequence[XY], dash: float) -> Iterator[Sequence[XY]]:
    """The visible pieces of a line: as long as the gaps between them. Pillow draws solid lines only."""
    if not dash:
        yield points
        return
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = math.hypot(x1 - x0, y1 - y0)
        for i in range(math.ceil(length / (2 * dash))):
            ends = (2 * i * dash / length, min((2 * i + 1) * dash / length, 1.0))
            yield [(x0 + share * (x1 - x0), y0 + share * (y1 - y0)) for share in ends]
