"""All settings of every trial at once, and how much each mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftsweep.records.quantities import Quantity, plain, quantity
from peftsweep.report.analysis.tuning import Trial, Tuning, sort_key
from peftsweep.report.figures.canvas import Anchor, Canvas, Line, Text, text_width
from peftsweep.report.figures.frame import fitted
from peftsweep.report.figures.tuning import PANEL_HEIGHT, PANEL_WIDTH, spans, without_outliers

TOP, BOTTOM = 46.0, PANEL_HEIGHT - 22
PIXELS_PER_TICK = 48.0
MOST_KINDS = 8  # of whole numbers that are spread evenly, as ranks are
FIRST_LEFT, LAST_RIGHT = 42.0, 48.0  # pixels beside the first and the last axis


@dataclass(frozen=True)
class ParallelAxis:
    """heights: of every value, by its text. labels: what stands beside it, by height."""

    title: str
    heights: Mapping[str, float]
    labels: Mapping[float, str]


def draw_parallel(tuning: Tuning) -> Canvas | None:
    """Parallel coordinates: a line for each trial through its settings to its objective.

    None for fewer than two settings that differ, or two trials with a value.
    """
    known = tuning.trials[0].settings if tuning.trials else ()
    keys = [key for key in known if len({_text(trial.settings.get(key)) for trial in tuning.trials}) > 1]
    drawn = [trial for trial in tuning.trials if trial.value is not None and all(key in trial.settings for key in keys)]
    if len(keys) < 2 or len(drawn) < 2:
        return None
    inner = without_outliers(drawn, tuning)
    objective = [min(max(trial.value, min(inner)), max(inner)) for trial in drawn if trial.value is not None]
    columns = [*([trial.settings[key] for trial in drawn] for key in keys), objective]
    shown = [*map(quantity, keys), quantity(tuning.objective, objective)]
    axes = [_axis(one, values) for one, values in zip(shown, columns, strict=True)]
    canvas = Canvas(PANEL_WIDTH, PANEL_HEIGHT, f"{tuning.row}: settings and objective of every trial")
    lefts = [FIRST_LEFT + i * (PANEL_WIDTH - FIRST_LEFT - LAST_RIGHT) / len(keys) for i in range(len(axes))]
    canvas.add(*(Line(((x, TOP), (x, BOTTOM)), "muted") for x in lefts))
    _add_trials(canvas, tuning, drawn, columns, axes, lefts)
    for number, (axis, x) in enumerate(zip(axes, lefts, strict=True)):
        _add_words(canvas, axis, x, number, is_last=number == len(axes) - 1)
    return canvas


def _text(value: Any) -> str:
    """1 and 1.0 are one value."""
    return repr(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _axis(shown: Quantity, values: Sequence[Any]) -> ParallelAxis:
    """Numbers on their scale; choices, and a few whole numbers, evenly spread."""
    if _is_measured(values):
        scale = fitted(values, BOTTOM, TOP, log=spans(values))
        labels = {scale(tick): plain(float(tick / shown.divisor)) for tick in scale.ticks(shown, PIXELS_PER_TICK)}
        return ParallelAxis(shown.name, {_text(value): scale(value) for value in values}, labels)
    ordered = sorted({_text(value): value for value in values}.values(), key=sort_key)
    step = (BOTTOM - TOP) / max(1, len(ordered) - 1)
    heights = {_text(value): BOTTOM - i * step for i, value in enumerate(ordered)}
    return ParallelAxis(shown.name, heights, {heights[_text(value)]: plain(value) for value in ordered})


def _is_measured(values: Sequence[Any]) -> bool:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return numbers and (any(isinstance(value, float) for value in values) or len(set(values)) > MOST_KINDS)


def _add_trials(
    canvas: Canvas,
    tuning: Tuning,
    drawn: Sequence[Trial],
    columns: Sequence[Sequence[Any]],
    axes: Sequence[ParallelAxis],
    lefts: Sequence[float],
) -> None:
    """The best on top."""
    good = [trial in tuning.good_trials() for trial in drawn]
    for number in sorted(range(len(drawn)), key=lambda i: (good[i], drawn[i].is_ok)):
        heights = [axis.heights[_text(values[number])] for axis, values in zip(axes, columns, strict=True)]
        color = "c2" if good[number] else "c1" if drawn[number].is_ok else "muted"
        width, dash = 2.2 if good[number] else 1.2, 0.0 if drawn[number].is_ok else 3.0
        opacity = 0.85 if drawn[number].is_ok else 0.45
        canvas.add(Line(tuple(zip(lefts, heights, strict=True)), color, width, dash, opacity))


def _add_words(canvas: Canvas, axis: ParallelAxis, x: float, number: int, *, is_last: bool) -> None:
    """Titles in two lines, so that neighbours don't meet; numbers outside of the first and last axis."""
    anchor: Anchor = "end" if is_last else "middle" if number else "start"
    at = canvas.width if is_last else x if number else 0.0
    canvas.add(Text(at, 16 + 14 * (number % 2), axis.title, "ink", anchor, 11))
    for y, label in axis.labels.items():
        beside = Text(x + 6, y + 4, label, "muted", "start", 10, halo=True)
        canvas.add(beside if is_last else Text(x - 6, y + 4, label, "muted", "end", 10, halo=True))


def draw_importance(shares: Mapping[str, float], row: str) -> Canvas | None:
    """How much each setting mattered, as bars; None where that is not known."""
    if not shares:
        return None
    canvas = Canvas(PANEL_WIDTH, 36 + 26.0 * len(shares), f"{row}: importance of each setting")
    left = 12 + max(text_width(quantity(key).name) for key in shares)
    scale = fitted([0.0, 1.0], left, PANEL_WIDTH - 60, from_zero=True)
    canvas.add(Text(0, 16, "share in what good trials have in common, %"))
    for number, (key, share) in enumerate(shares.items()):
        y = 40.0 + 26 * number
        canvas.add(Text(left - 10, y + 4, quantity(key).name, anchor="end"))
        canvas.add(Line(((scale(0), y), (scale(share), y)), "c1", 12))
        canvas.add(Text(scale(share) + 8, y + 4, f"{100 * share:.0f}", "muted"))
    return canvas
