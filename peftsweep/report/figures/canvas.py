"""A drawing of lines, marks and words, as SVG for a page or a file, and as PNG for slides and for places that show no
SVG. Colours are names, so that one drawing suits a light and a dark page.

Why not matplotlib: it takes 0.35 s of CPU to import and 175 ms for each figure as SVG and PNG, where this takes 18 ms;
a report of six methods (18 figures) would take 5 s instead of 2. Its SVG is three times as large, and has neither hover
titles nor colours that follow the page.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

Anchor = Literal["start", "middle", "end"]
XY = tuple[float, float]

# Okabe and Ito (2008), the light ones darkened to a contrast of 3 on white. The page's style has those of a dark page.
COLORS = {
    "c1": "#0072b2",
    "c2": "#d55e00",
    "c3": "#009e73",
    "c4": "#aa4499",
    "c5": "#b07d00",
    "c6": "#3795c7",
    "c7": "#4d4d4d",
    "ink": "#1d1d1b",
    "muted": "#62625e",
    "grid": "#e4e3de",
    "paper": "#ffffff",
}
SERIES = tuple(name for name in COLORS if name.startswith("c"))
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LETTER_WIDTH = 0.56  # of the font size, on average
FILE_MARGIN = 14.0  # pixels around a drawing in a file; on a page, the page leaves room

PNG_SCALE, SMOOTHING = 2, 2  # pixels of the file for one of the drawing; and of what is drawn for one of the file
SCALE = PNG_SCALE * SMOOTHING
OUTLINE = 1.5  # pixels of the drawing
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}  # Pillow's words: left, middle or right of the baseline

# Points on a circle of radius 1, so that all marks look equally large.
SHAPES: dict[str, tuple[XY, ...]] = {
    "circle": tuple((math.cos(math.tau * i / 24), math.sin(math.tau * i / 24)) for i in range(24)),
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "up": ((0, -1.15), (1.05, 0.75), (-1.05, 0.75)),
    "diamond": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
    "down": ((0, 1.15), (1.05, -0.75), (-1.05, -0.75)),
    "plus": (
        *((-0.4, -1.1), (0.4, -1.1), (0.4, -0.4), (1.1, -0.4), (1.1, 0.4), (0.4, 0.4)),
        *((0.4, 1.1), (-0.4, 1.1), (-0.4, 0.4), (-1.1, 0.4), (-1.1, -0.4), (-0.4, -0.4)),
    ),
    "hexagon": tuple((1.05 * math.sin(math.tau * i / 6), 1.05 * math.cos(math.tau * i / 6)) for i in range(6)),
}


@dataclass(frozen=True)
class Line:
    points: tuple[XY, ...]
    color: str
    width: float = 1.0
    dash: float = 0.0  # pixels, 0: solid
    opacity: float = 1.0


@dataclass(frozen=True)
class Area:
    """A filled polygon; hollow: its outline, filled with the page's own colour."""

    points: tuple[XY, ...]
    color: str
    opacity: float = 1.0
    hollow: bool = False
    title: str = ""  # shown when a pointer rests on it


@dataclass(frozen=True)
class Text:
    x: float
    y: float  # of the baseline
    text: str
    color: str = "ink"
    anchor: Anchor = "start"
    size: float = 12.0
    bold: bool = False
    halo: bool = False  # keeps lines behind it from crossing it

    @property
    def box(self) -> tuple[float, float, float, float]:
        """left, top, right, bottom, about."""
        width = text_width(self.text, self.size)
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return left, self.y - self.size, left + width, self.y + 0.25 * self.size


Item = Line | Area | Text


@dataclass
class Canvas:
    """width, height: pixels. title: what the drawing shows, for who can't see it."""

    width: float
    height: float
    title: str
    items: list[Item] = field(default_factory=list)

    def add(self, *items: Item) -> None:
        self.items += items

    def mark(
        self,
        at: XY,
        shape: str,
        color: str,
        radius: float = 5.0,
        *,
        hollow: bool = False,
        opacity: float = 1.0,
        title: str = "",
    ) -> None:
        points = tuple((at[0] + radius * x, at[1] + radius * y) for x, y in SHAPES[shape])
        self.add(Area(points, color, opacity, hollow, title))


def series_style(number: int) -> tuple[str, str]:
    """Colour and shape of a series: no two of the first 49 share both."""
    shapes = tuple(SHAPES)
    return SERIES[number % len(SERIES)], shapes[(number + number // len(SERIES)) % len(shapes)]


def text_width(text: str, size: float = 12.0) -> float:
    return LETTER_WIDTH * size * len(text)


def inline_svg(canvas: Canvas, css_class: str = "") -> str:
    """For a page whose style defines the colours as variables."""
    attributes = f' class="{css_class}"' if css_class else ""
    return _svg(canvas, lambda color: f"var(--{color})", attributes)


def file_svg(canvas: Canvas) -> str:
    """For a file of its own, light, with a margin."""
    return _svg(canvas, COLORS.__getitem__, ' xmlns="http://www.w3.org/2000/svg" style="background:#fff"', FILE_MARGIN)


def _svg(canvas: Canvas, color_of: Callable[[str], str], attributes: str, margin: float = 0.0) -> str:
    width, height, start = (_number(n) for n in (canvas.width + 2 * margin, canvas.height + 2 * margin, -margin))
    body = "".join(_element(item, color_of) for item in canvas.items)
    return (
        f'<svg{attributes} viewBox="{start} {start} {width} {height}" width="{width}" height="{height}" role="img" '
        f"aria-label={quoteattr(canvas.title)} font-family={quoteattr(FONT)}>{body}</svg>"
    )


def _element(item: Item, color_of: Callable[[str], str]) -> str:
    if isinstance(item, Line):
        dash = f' stroke-dasharray="{_number(item.dash)}"' if item.dash else ""
        return (
            f'<polyline points="{_points(item.points)}" fill="none" stroke="{color_of(item.color)}" '
            f'stroke-width="{_number(item.width)}"{dash}{_opacity(item.opacity)} stroke-linejoin="round"/>'
        )
    if isinstance(item, Area):
        color = color_of(item.color)
        paint = f'fill="{color_of("paper")}" stroke="{color}" stroke-width="1.5"' if item.hollow else f'fill="{color}"'
        title = f"<title>{escape(item.title)}</title>" if item.title else ""
        return f'<polygon points="{_points(item.points)}" {paint}{_opacity(item.opacity)}>{title}</polygon>'
    weight = ' font-weight="600"' if item.bold else ""
    halo = f' stroke="{color_of("paper")}" stroke-width="3" paint-order="stroke"' if item.halo else ""
    return (
        f'<text x="{_number(item.x)}" y="{_number(item.y)}" font-size="{_number(item.size)}" '
        f'text-anchor="{item.anchor}" fill="{color_of(item.color)}"{weight}{halo}>{escape(item.text)}</text>'
    )


def _points(points: Iterable[XY]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


def _opacity(value: float) -> str:
    return f' opacity="{value:g}"' if value < 1 else ""


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value else "0"


def save_png(canvas: Canvas, path: Path) -> None:
    """Write a drawing, light, with a margin, at twice its size."""
    from PIL import Image
    from PIL.ImageDraw import Draw

    size = (round((canvas.width + 2 * FILE_MARGIN) * SCALE), round((canvas.height + 2 * FILE_MARGIN) * SCALE))
    image = Image.new("RGB", size, COLORS["paper"])
    draw = Draw(image)
    for item in canvas.items:
        if isinstance(item, Text):
            _draw_text(draw, item)
            continue
        color = _mixed(item.color, item.opacity)
        if isinstance(item, Area):
            fill = _mixed("paper", 1.0) if item.hollow else color
            draw.polygon(_at(item.points), fill, color, round(OUTLINE * SCALE))
            continue
        for piece in dashes(item.points, item.dash):
            draw.line(_at(piece), color, max(1, round(item.width * SCALE)), "curve")
    image.reduce(SMOOTHING).save(path, compress_level=4)


def _at(points: Iterable[XY]) -> list[XY]:
    return [((x + FILE_MARGIN) * SCALE, (y + FILE_MARGIN) * SCALE) for x, y in points]


def _mixed(color: str, opacity: float) -> tuple[int, ...]:
    """What a colour looks like on paper: Pillow draws opaque."""
    from PIL.ImageColor import getrgb

    pairs = zip(getrgb(COLORS[color]), getrgb(COLORS["paper"]), strict=True)
    return tuple(round(opacity * one + (1 - opacity) * other) for one, other in pairs)


def _draw_text(draw: ImageDraw, text: Text) -> None:
    from PIL.ImageFont import load_default

    font = load_default(text.size * SCALE)
    halo = round(OUTLINE * SCALE) if text.halo else 0
    [where], ink, paper = _at([(text.x, text.y)]), COLORS[text.color], COLORS["paper"]
    draw.text(where, text.text, ink, font, ANCHORS[text.anchor], stroke_width=halo, stroke_fill=paper)


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
