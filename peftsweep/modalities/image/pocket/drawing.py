"""Brushes of the miniature's drawn world: forms, toys, grounds and light on a canvas of unit coordinates.

Pictures are drawn four times as large with PIL and then reduced, so that edges are smooth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from peftsweep.modalities.image.pocket.scene import Toy

SIDE = 64  # pixels of a finished picture
SCALE = 4  # drawn this many times as large
EDGE = 6  # width of outlines on the large canvas
Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (247, 140, 30),
    "yellow": (250, 215, 50),
    "green": (30, 150, 60),
    "blue": (40, 90, 220),
    "purple": (130, 60, 180),
    "pink": (250, 140, 190),
    "white": (245, 245, 245),
    "black": (40, 40, 45),
    "brown": (125, 75, 40),
}
LIGHTS: dict[str, tuple[float, float, float]] = {  # factors of red, green and blue
    "day": (1.0, 1.0, 1.0),
    "night": (0.48, 0.52, 0.72),
    "sunset": (1.08, 0.72, 0.48),
}


class Canvas:
    """A square picture under way; places are (x, y) from 0 to 1 with y downwards, and lengths have the same unit."""

    def __init__(self, ground: Colour) -> None:
        self.size = SIDE * SCALE
        self.image = Image.new("RGB", (self.size, self.size), ground)
        self.brush = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        """A filled polygon with an edge of a darker shade, so that no form is lost on a ground of its colour."""
        scaled = [(x * self.size, y * self.size) for x, y in points]
        self.brush.polygon(scaled, fill=fill)
        self.brush.line([*scaled, scaled[0], scaled[1]], fill=shade(fill, 0.6), width=EDGE, joint="curve")

    def disc(self, centre: Point, radius: float, fill: Colour, *, flat: float = 1.0, edge: bool = True) -> None:
        """An ellipse, `flat` times as high as wide."""
        outline = shade(fill, 0.6) if edge else fill
        self.brush.ellipse(self._box(centre, radius, flat), fill=fill, outline=outline, width=EDGE)

    def hoop(self, centre: Point, radius: float, colour: Colour) -> None:
        self.brush.ellipse(
            self._box(centre, radius), outline=shade(colour, 0.6), width=round(radius * 0.44 * self.size)
        )
        inside = radius - EDGE / self.size
        self.brush.ellipse(self._box(centre, inside), outline=colour, width=round(radius * 0.36 * self.size))

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        scaled = [(x * self.size, y * self.size) for x, y in points]
        self.brush.line(scaled, fill=colour, width=round(width * self.size), joint="curve")

    def pixels(self, light: str, brightness: float) -> np.ndarray:
        """The finished picture, uint8 (SIDE, SIDE, 3), in one of LIGHTS times a brightness about 1."""
        reduced = np.asarray(self.image.reduce(SCALE), dtype=np.float32)
        lit = reduced * np.asarray(LIGHTS[light], dtype=np.float32) * brightness
        return np.clip(lit.round(), 0, 255).astype(np.uint8)

    def _box(self, centre: Point, radius: float, flat: float = 1.0) -> tuple[float, float, float, float]:
        (x, y), size, high = centre, self.size, radius * flat
        return (x - radius) * size, (y - high) * size, (x + radius) * size, (y + high) * size


Form = Callable[[Canvas, Point, float, Colour], None]  # draws about a centre, within a radius
Pattern = Callable[[Canvas, np.random.Generator], None]


def shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(part * factor)) for part in colour)
    return red, green, blue


def vary(colour: Colour, rng: np.random.Generator, spread: int = 10) -> Colour:
    moved = np.clip(np.asarray(colour) + rng.integers(-spread, spread + 1, 3), 0, 255)
    return int(moved[0]), int(moved[1]), int(moved[2])


def polar(centre: Point, radii_by_angle: Sequence[tuple[float, float]]) -> list[Point]:
    """Points around a centre from (angle, radius) pairs; angles in degrees, clockwise from the top."""
    x, y = centre
    turns = [(math.radians(angle), radius) for angle, radius in radii_by_angle]
    return [(x + radius * math.sin(turn), y - radius * math.cos(turn)) for turn, radius in turns]


def _shifted(centre: Point, radius: float, x: float, y: float) -> Point:
    """What lies (x, y) radii from a centre."""
    return centre[0] + radius * x, centre[1] + radius * y


def _placed(centre: Point, radius: float, offsets: Iterable[Point]) -> list[Point]:
    return [_shifted(centre, radius, x, y) for x, y in offsets]


def _polar_form(corners: Sequence[tuple[float, float]], drop: float = 0.0) -> Form:
    """A polygon with corners at (degrees, radii) around a centre that lies `drop` radii lower."""

    def draw(canvas: Canvas, centre: Point, radius: float, colour: Colour) -> None:
        middle = (centre[0], centre[1] + radius * drop)
        canvas.polygon(polar(middle, [(angle, radius * share) for angle, share in corners]), colour)

    return draw


def _ball(canvas: Canvas, centre: Point, radius: float, colour: Colour) -> None:
    canvas.disc(centre, radius, colour)
    red, green, blue = (round(part * 0.4 + 255 * 0.6) for part in colour)
    shine = (centre[0] - radius * 0.35, centre[1] - radius * 0.35)
    canvas.disc(shine, radius * 0.2, (red, green, blue), edge=False)


def _cross(canvas: Canvas, centre: Point, radius: float, colour: Colour) -> None:
    corners = [(1, 3), (1, 1), (3, 1)]  # of a quarter; the next is the last one turned
    for _ in range(3):
        corners += [(y, -x) for x, y in corners[-3:]]
    canvas.polygon(_placed(centre, radius / 3, corners), colour)


def _heart(canvas: Canvas, centre: Point, radius: float, colour: Colour) -> None:
    turns = [math.pi * i / 20 for i in range(40)]
    up = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2.5 for t in turns]
    across = [16 * math.sin(t) ** 3 for t in turns]
    outline = [(x, -y) for x, y in zip(across, up, strict=True)]
    canvas.polygon(_placed(centre, radius / 16, outline), colour)


def _flower(canvas: Canvas, centre: Point, radius: float, colour: Colour) -> None:
    for petal in polar(centre, [(72 * i, radius * 0.6) for i in range(5)]):
        canvas.disc(petal, radius * 0.42, colour)
    canvas.disc(centre, radius * 0.32, shade(colour, 0.45), edge=False)


def _house(canvas: Canvas, centre: Point, radius: float, colour: Colour) -> None:
    walls, roof = [(-0.75, -0.1), (0.75, -0.1), (0.75, 1), (-0.75, 1)], [(-1.05, -0.1), (0, -1), (1.05, -0.1)]
    door = [(-0.22, 0.4), (0.22, 0.4), (0.22, 1), (-0.22, 1)]
    for part, factor in ((walls, 1.0), (roof, 0.6), (door, 0.3)):
        canvas.polygon(_placed(centre, radius, part), shade(colour, factor))


FORMS: dict[str, Form] = {
    "ball": _ball,
    "square": _polar_form([(45 + 90 * i, 1.2) for i in range(4)]),
    "triangle": _polar_form([(120 * i, 1.2) for i in range(3)], drop=0.2),
    "star": _polar_form([(36 * i, 0.48 if i % 2 else 1.1) for i in range(10)]),
    "ring": Canvas.hoop,
    "heart": _heart,
    "diamond": _polar_form([(90 * i, 0.65 if i % 2 else 1.1) for i in range(4)]),
    "cross": _cross,
    "flower": _flower,
    "house": _house,
}


def _blades(canvas: Canvas, rng: np.random.Generator) -> None:
    for x, y in rng.random((16, 2)):
        canvas.line([(x - 0.02, y - 0.05), (x, y), (x + 0.03, y - 0.05)], (80, 150, 50), 0.014)


def _dots(count: int, colour: Colour) -> Pattern:
    def draw(canvas: Canvas, rng: np.random.Generator) -> None:
        for x, y in rng.random((count, 2)):
            canvas.disc((float(x), float(y)), 0.014, colour, edge=False)

    return draw


def _waves(canvas: Canvas, rng: np.random.Generator) -> None:
    phase, drop = rng.random(2)
    for row in range(5):
        y = (row + drop) / 5
        points = [(x / 20, y + 0.025 * math.sin(2 * math.pi * (x / 10 + phase + row / 2))) for x in range(21)]
        canvas.line(points, (170, 215, 245), 0.016)


def _checks(canvas: Canvas, rng: np.random.Generator) -> None:
    for row in range(4):
        for column in range(row % 2, 4, 2):
            x, y, side = column / 4 * canvas.size, row / 4 * canvas.size, canvas.size / 4
            canvas.brush.rectangle((x, y, x + side, y + side), fill=(150, 150, 160))


def _bricks(canvas: Canvas, rng: np.random.Generator) -> None:
    for row in range(8):
        canvas.line([(0, row / 8), (1, row / 8)], (215, 195, 185), 0.016)
        for column in range(5):
            x = (column + row % 2 / 2) / 4
            canvas.line([(x, row / 8), (x, (row + 1) / 8)], (215, 195, 185), 0.016)


# Ground colour and what is drawn on it, if anything.
GROUNDS: dict[str, tuple[Colour, Pattern | None]] = {
    "white": ((250, 250, 250), None),
    "grey": ((150, 150, 155), None),
    "blue": ((150, 185, 240), None),
    "pink": ((245, 200, 215), None),
    "grass": ((120, 190, 85), _blades),
    "sand": ((232, 206, 150), _dots(20, (196, 160, 105))),
    "water": ((95, 165, 220), _waves),
    "sky": ((25, 28, 70), _dots(14, (250, 250, 210))),
    "checks": ((225, 225, 230), _checks),
    "bricks": ((185, 95, 75), _bricks),
}


def draw_toy(canvas: Canvas, toy: Toy, centre: Point, radius: float, rng: np.random.Generator) -> None:
    """Draw a toy about a centre; it is 2 radii high."""
    body, head, belly = (vary(COLOURS[colour], rng) for colour in (toy.body_colour, toy.head_colour, toy.belly_colour))
    for side in (-1, 1):
        canvas.disc(_shifted(centre, radius, 0.34 * side, 0.9), 0.19 * radius, shade(body, 0.8), flat=0.7)
        canvas.disc(_shifted(centre, radius, 0.62 * side, 0.2), 0.16 * radius, shade(body, 0.8))
    _draw_part(canvas, toy.body_form, _shifted(centre, radius, 0, 0.38), 0.5 * radius, body)
    _draw_belly(canvas, toy.belly, _shifted(centre, radius, 0, 0.42), 0.3 * radius, belly)
    _draw_ears(canvas, toy.ears, centre, radius, head)
    _draw_part(canvas, toy.head_form, _shifted(centre, radius, 0, -0.4), 0.4 * radius, head)
    _draw_face(canvas, centre, radius)


def _draw_part(canvas: Canvas, form: str, centre: Point, radius: float, colour: Colour) -> None:
    (x, y), r = centre, radius
    if form == "round":
        canvas.disc(centre, 1.05 * r, colour)
    elif form == "square":
        canvas.polygon([(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)], colour)
    else:
        canvas.polygon(
            [(x - 0.5 * r, y - 1.05 * r), (x + 0.5 * r, y - 1.05 * r), (x + 1.35 * r, y + r), (x - 1.35 * r, y + r)],
            colour,
        )


def _draw_belly(canvas: Canvas, belly: str, centre: Point, radius: float, colour: Colour) -> None:
    (x, y), r = centre, radius
    if belly == "spotted":
        canvas.disc(centre, r, colour, edge=False)
    elif belly == "starry":
        FORMS["star"](canvas, centre, 1.15 * r, colour)
    elif belly == "striped":
        for height in (-0.75, 0.05, 0.85):
            canvas.line([(x - 1.05 * r, y + height * r), (x + 1.05 * r, y + height * r)], colour, 0.4 * r)


def _draw_ears(canvas: Canvas, ears: str, centre: Point, radius: float, colour: Colour) -> None:
    for side in (-1, 1):
        x, y = _shifted(centre, radius, 0.28 * side, -0.72)
        if ears == "round":
            canvas.disc((x + 0.08 * side * radius, y), 0.2 * radius, colour)
        elif ears == "long":
            canvas.disc((x - 0.04 * side * radius, y - 0.14 * radius), 0.11 * radius, colour, flat=2.6)
        elif ears == "pointed":
            r = 0.2 * radius
            canvas.polygon([(x - r, y + r), (x + 0.5 * side * r, y - 1.4 * r), (x + r, y + r)], colour)


def _draw_face(canvas: Canvas, centre: Point, radius: float) -> None:
    for side in (-1, 1):
        eye = _shifted(centre, radius, 0.16 * side, -0.44)
        canvas.disc(eye, 0.1 * radius, (250, 250, 250), edge=False)
        canvas.disc(eye, 0.055 * radius, (20, 20, 25), edge=False)
    mouth = _placed(centre, radius, ((-0.12, -0.2), (0, -0.16), (0.12, -0.2)))
    canvas.line(mouth, (20, 20, 25), 0.05 * radius)
