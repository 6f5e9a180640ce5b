"""The toy of the drawn world: a figure of body, head, ears, eyes and belly, each of its own form and colour."""

from __future__ import annotations

import numpy as np

from peftsweep.modalities.image.pocket.drawing import COLOURS, FORMS, Canvas, Colour, Point, shade, vary
from peftsweep.modalities.image.pocket.scene import Toy


def draw_toy(canvas: Canvas, toy: Toy, centre: Point, radius: float, rng: np.random.Generator) -> None:
    """Draw a toy about a centre; it is 2 radii high."""
    body, head, belly = (vary(COLOURS[colour], rng) for colour in (toy.body_colour, toy.head_colour, toy.belly_colour))
    _draw_limbs(canvas, centre, radius, shade(body, 0.8))
    _draw_part(canvas, toy.body_form, _place(centre, radius, 0, 0.38), 0.5 * radius, body)
    _draw_belly(canvas, toy.belly, _place(centre, radius, 0, 0.42), 0.3 * radius, belly)
    _draw_ears(canvas, toy.ears, centre, radius, head)
    _draw_part(canvas, toy.head_form, _place(centre, radius, 0, -0.4), 0.4 * radius, head)
    _draw_face(canvas, centre, radius)


def _place(centre: Point, radius: float, x: float, y: float) -> Point:
    return centre[0] + radius * x, centre[1] + radius * y


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


def _draw_limbs(canvas: Canvas, centre: Point, radius: float, colour: Colour) -> None:
    for side in (-1, 1):
        canvas.disc(_place(centre, radius, 0.34 * side, 0.9), 0.19 * radius, colour, flat=0.7)
        canvas.disc(_place(centre, radius, 0.62 * side, 0.2), 0.16 * radius, colour)


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
        x, y = _place(centre, radius, 0.28 * side, -0.72)
        if ears == "round":
            canvas.disc((x + 0.08 * side * radius, y), 0.2 * radius, colour)
        elif ears == "long":
            canvas.disc((x - 0.04 * side * radius, y - 0.14 * radius), 0.11 * radius, colour, flat=2.6)
        elif ears == "pointed":
            r = 0.2 * radius
            canvas.polygon([(x - r, y + r), (x + 0.5 * side * r, y - 1.4 * r), (x + r, y + r)], colour)


def _draw_face(canvas: Canvas, centre: Point, radius: float) -> None:
    for side in (-1, 1):
        eye = _place(centre, radius, 0.16 * side, -0.44)
        canvas.disc(eye, 0.1 * radius, (250, 250, 250), edge=False)
        canvas.disc(eye, 0.055 * radius, (20, 20, 25), edge=False)
    mouth = [_place(centre, radius, x, y) for x, y in ((-0.12, -0.2), (0, -0.16), (0.12, -0.2))]
    canvas.line(mouth, (20, 20, 25), 0.05 * radius)
