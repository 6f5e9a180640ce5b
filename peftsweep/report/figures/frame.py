"""Scales, ticks and frames of a figure, and a place for labels that don't collide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from peftsweep.records.quantities import Quantity, short_number
from peftsweep.report.figures.canvas import XY, Canvas, Line, Text, text_width

MARGIN_TOP, MARGIN_RIGHT, MARGIN_BOTTOM = 38.0, 14.0, 44.0
TICK_SIZE = 11.0
Styles = Mapping[str, tuple[str, str]]  # row -> colour, shape
Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels
LEGEND_SIZE, LEGEND_LINE = 11.0, 16.0  # pixels
PADDING = 0.06  # of a scale's range, beyond the data on either side
PIXELS_PER_X_TICK, PIXELS_PER_Y_TICK = 62.0, 36.0


@dataclass(frozen=True)
class Scale:
    """From values to pixels. low, high: the values at start and end."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value, low, high = (math.log10(max(v, 1e-300)) if self.log else v for v in (value, self.low, self.high))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def clipped(self, value: float) -> float:
        return self(min(max(value, self.low), self.high))

    def ticks(self, shown: Quantity, pixels: float = PIXELS_PER_X_TICK) -> list[float]:
        """Round numbers of the unit shown, as many as there is room for; whole ones where it has no digits."""
        wanted = max(2, int(abs(self.end - self.start) / pixels))
        low, high = self.low / shown.divisor, self.high / shown.divisor
        found = _log_ticks(low, high, wanted) if self.log else []
        return [tick * shown.divisor for tick in found or _even_ticks(low, high, wanted, 0.0 if shown.digits else 1.0)]


def fitted(values: Iterable[float], start: float, end: float, *, log: bool = False, from_zero: bool = False) -> Scale:
    """A scale that holds all values with some room on both sides."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    low, high = min(found), max(found)
    if log:
        ratio = max(high / low, 1.5) ** PADDING if high > low else 1.5
        return Scale(low / ratio, high * ratio, start, end, log=True)
    room = PADDING * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(0.0 if from_zero and low >= 0 else low - room, high + room, start, end)


def spans(values: Sequence[float], factor: float) -> bool:
    """Whether a log scale shows them better: all above 0, and the largest more than so many times the smallest."""
    return bool(values) and min(values) > 0 and max(values) > factor * min(values)


def _even_ticks(low: float, high: float, wanted: int, least_step: float) -> list[float]:
    raw = max((high - low) / wanted, least_step)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    """Decades, or 1, 2, 5 of each; none where so little is spanned that even steps read better."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(found) <= wanted:
            return found if len(found) > 1 else []
    return found[:: math.ceil(len(found) / wanted)]


def tick_labels(ticks: Sequence[float], shown: Quantity, *, log: bool = False) -> list[str]:
    """On an even scale all with as many digits after the point as any needs: 1.30, 1.35."""
    labels = [short_number(round(tick / shown.divisor, 10)) for tick in ticks]
    if log or any("e" in label for label in labels):
        return labels
    parts = [label.partition(".") for label in labels]
    digits = max((len(after) for *_, after in parts), default=0)
    if not digits:
        return labels
    return ["0" if whole == "0" and not after else f"{whole}.{after.ljust(digits, '0')}" for whole, _, after in parts]


@dataclass(frozen=True)
class Frame:
    """Where the data of a figure lie, and how."""

    x: Scale
    y: Scale

    def at(self, x: float, y: float) -> XY:
        return self.x.clipped(x), self.y.clipped(y)


def framed(
    canvas: Canvas,
    x: tuple[Quantity, Sequence[float]],
    y: tuple[Quantity, Sequence[float]],
    *,
    log_x: bool = False,
    log_y: bool = False,
    x_from_zero: bool = False,
    y_ends: tuple[float, float] | None = None,
) -> Frame:
    """Axes that hold the values given, drawn: quantities with their units, round ticks, quiet lines.

    The y axis' name stands over it, where nobody has to tilt their head.
    """
    bottom = canvas.height - MARGIN_BOTTOM
    y_scale = fitted(y[1], bottom, MARGIN_TOP, log=log_y)
    if y_ends:
        y_scale = Scale(max(y_scale.low, y_ends[0]), min(y_scale.high, y_ends[1]), bottom, MARGIN_TOP)
    y_ticks = y_scale.ticks(y[0], PIXELS_PER_Y_TICK)
    y_labels = tick_labels(y_ticks, y[0], log=log_y)
    left = 14.0 + max((text_width(label, TICK_SIZE) for label in y_labels), default=20.0)
    right = canvas.width - MARGIN_RIGHT
    frame = Frame(fitted(x[1], left, right, log=log_x, from_zero=x_from_zero), y_scale)
    for tick, label in zip(y_ticks, y_labels, strict=True):
        canvas.add(Line(((left, y_scale(tick)), (right, y_scale(tick))), "grid"))
        canvas.add(Text(left - 7, y_scale(tick) + 4, label, "muted", "end", TICK_SIZE))
    canvas.add(Line(((left, bottom), (right, bottom)), "muted"))
    x_ticks = frame.x.ticks(x[0])
    for tick, label in zip(x_ticks, tick_labels(x_ticks, x[0], log=log_x), strict=True):
        canvas.add(Line(((frame.x(tick), bottom), (frame.x(tick), bottom + 4)), "muted"))
        canvas.add(Text(frame.x(tick), bottom + 17, label, "muted", "middle", TICK_SIZE))
    canvas.add(Text(0, 16, y[0].title + (", log scale" if log_y else ""), "ink", "start", 12, bold=True))
    canvas.add(Text(right, canvas.height - 6, x[0].title + (", log scale" if log_x else ""), "ink", "end", 12))
    return frame


def add_legend(canvas: Canvas, styles: Styles, title: str = "") -> None:
    """Colour and shape of each name, below the drawing, in as many lines as it needs."""
    x, y = 0.0, canvas.height + 8
    if title:
        canvas.add(Text(x, y + 4, title, "muted", size=LEGEND_SIZE))
        x += text_width(title, LEGEND_SIZE) + 12
    for name, (color, shape) in styles.items():
        width = text_width(name, LEGEND_SIZE) + 26
        if x + width > canvas.width and x > 0:
            x, y = 0.0, y + LEGEND_LINE
        canvas.mark((x + 6, y), shape, color, 4.5)
        canvas.add(Text(x + 15, y + 4, name, size=LEGEND_SIZE))
        x += width
    canvas.height = y + 10


def place_labels(
    canvas: Canvas, anchors: Sequence[tuple[XY, str, str]], size: float = 12.0, obstacles: Iterable[Box] = ()
) -> None:
    """Put a label beside each point where it covers least: other points, other labels, obstacles, the canvas's edge.

    anchors: point, text, colour; the first come first.
    """
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for (x, y), _, _ in anchors] + [*obstacles]
    for (x, y), text, color in anchors:
        options = [
            Text(x + dx, y + dy, text, color, side, size, halo=True)  # type: ignore[arg-type]
            for far in (0, 14, 28, 44, 62)
            for dx, dy, side in (
                (9 + far / 2, -9 - far, "start"),
                (9 + far / 2, 17 + far, "start"),
                (-9 - far / 2, -9 - far, "end"),
                (-9 - far / 2, 17 + far, "end"),
                (10, 4, "start"),
                (-10, 4, "end"),
                (0, -11 - far, "middle"),
                (0, 20 + far, "middle"),
            )
        ]
        best = min(options, key=lambda option: covered(option.box, taken, canvas))
        if abs(best.y - y) > 24:
            canvas.add(Line(((x, y), (best.x, best.y - 4 if best.y > y else best.y + 2)), "muted", 0.7))
        canvas.add(best)
        taken.append(best.box)


def covered(box: Box, taken: Iterable[Box], canvas: Canvas) -> float:
    """How much a label would hide: square pixels that are taken already, and a hundred for each pixel beyond the
    edge."""
    left, top, right, bottom = box
    beyond = max(0.0, -left) + max(0.0, right - canvas.width) + max(0.0, MARGIN_TOP / 2 - top)
    beyond += max(0.0, bottom - (canvas.height - MARGIN_BOTTOM))
    return 100 * beyond + sum(
        max(0.0, min(right, r) - max(left, a)) * max(0.0, min(bottom, b) - max(top, t)) for a, t, r, b in taken
    )
