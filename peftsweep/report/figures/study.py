"""What tuning looks like: loss against learning rate, best so far, learning curves, settings and how they mattered."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftsweep.records.quantities import Quantity, format_settings, plain, quantity
from peftsweep.records.space import CAPACITY
from peftsweep.report.analysis.tuning import Curve, Trial, Tuning, is_number, parameter_importance, sort_key
from peftsweep.report.figures.canvas import (
    SHAPES,
    XY,
    Anchor,
    Area,
    Canvas,
    Line,
    Text,
    save_png,
    series_style,
    text_width,
)
from peftsweep.report.figures.frame import Frame, Styles, add_legend, covered, fitted, framed, spans

PANEL_WIDTH, PANEL_HEIGHT = 360.0, 270.0
LOG_FACTOR = 5.0  # losses that differ more are shown on a log scale
OUTLIER = 6.0  # times the distance from best to median: what lies beyond would flatten all the rest
RING = 9.0  # pixels, radius of what is drawn around a trial
# Of parallel coordinates: pixels of an axis' ends, between its ticks, and beside the first and the last axis.
TOP, BOTTOM = 46.0, PANEL_HEIGHT - 22
PIXELS_PER_TICK = 48.0
FIRST_LEFT, LAST_RIGHT = 42.0, 48.0
MOST_KINDS = 8  # of whole numbers that are spread evenly, as ranks are


def draw_study(tuning: Tuning, folder: Path) -> list[Path]:
    """Write what can be drawn of a study as PNG files, for MLflow; answers their paths."""
    figures = {
        "history": draw_best_so_far([tuning], {tuning.row: series_style(0)}, by_tokens=False),
        "learning_rate": draw_learning_rates(tuning),
        "parallel_coordinate": draw_parallel(tuning),
        "importance": draw_importance(parameter_importance(tuning), tuning.row),
    }
    drawn = {folder / f"{name}.png": canvas for name, canvas in figures.items() if canvas}
    for path, canvas in drawn.items():
        save_png(canvas, path)
    return [*drawn]


def draw_learning_rates(tuning: Tuning) -> Canvas | None:
    """The objective of every trial against its learning rate; None where none has both.

    One colour and shape a capacity; hollow: ended early, or failed; rings: the best and the default.
    """
    drawn = [(trial.lr, trial.value, trial) for trial in tuning.trials if trial.lr and trial.value is not None]
    if not drawn:
        return None
    tried = {str(value): value for trial in tuning.trials for value in [trial.settings.get(CAPACITY)]}
    capacities = sorted(tried.values(), key=sort_key)  # None where a method has none
    canvas = Canvas(PANEL_WIDTH, PANEL_HEIGHT, f"{tuning.row}: objective against learning rate")
    values = [value for _, value, _ in drawn]
    shown, inner = quantity(tuning.objective, values), without_outliers(values, tuning)
    rates = [trial.lr for trial in tuning.trials if trial.lr]
    rates += [end for found in tuning.space if found.key == "hparams.lr" for end in (found.low, found.high) if end]
    is_log = spans(inner, LOG_FACTOR)
    frame = framed(canvas, (quantity("hparams.lr"), rates), (shown, inner), log_x=True, log_y=is_log)
    for lr, value, trial in sorted(drawn, key=lambda found: found[2].is_ok):
        color, shape = series_style(capacities.index(trial.settings.get(CAPACITY)))
        told = f"trial {trial.name}, {format_settings(trial.settings)}: {shown.text(value)} ({trial.status})"
        canvas.mark(frame.at(lr, value), shape, color, 5, hollow=not trial.is_ok, title=told)
    for trial in tuning.trials:
        if trial.lr and trial.value is None:
            told = f"trial {trial.name}, {format_settings(trial.settings)}: {trial.status}"
            canvas.mark((frame.x(trial.lr), frame.y.end + 5), "down", "muted", 5, title=told)
    _ring(canvas, frame, tuning.best_trial, "best", "ink")
    if tuning.default_trial is not tuning.best_trial:
        _ring(canvas, frame, tuning.default_trial, "default", "muted")
    if any(capacity is not None for capacity in capacities):
        names = {plain(capacity): series_style(i) for i, capacity in enumerate(capacities)}
        add_legend(canvas, names, "capacity")
    return canvas


def without_outliers(values: Sequence[float], tuning: Tuning) -> list[float]:
    """The values that the frame must hold; the others are drawn at its edge."""
    best = min(values) if tuning.lower_is_better else max(values)
    limit = OUTLIER * statistics.median(abs(value - best) for value in values)
    return [value for value in values if abs(value - best) <= limit or limit == 0]


def _ring(canvas: Canvas, frame: Frame, trial: Trial | None, name: str, color: str) -> None:
    if trial is None or trial.lr is None or trial.value is None:
        return
    x, y = frame.at(trial.lr, trial.value)
    circle = tuple((x + RING * dx, y + RING * dy) for dx, dy in SHAPES["circle"])
    canvas.add(Line((*circle, circle[0]), color, 1.6))
    half = text_width(name) / 2
    middle = min(max(x, frame.x.start + half), frame.x.end - half)
    places: tuple[tuple[float, float, Anchor], ...] = (
        (middle, y - 13, "middle"),
        (middle, y + 22, "middle"),
        (x + 14, y + 4, "start"),
        (x - 14, y + 4, "end"),
    )
    labels = [
        Text(left, base, name, color, anchor, 12, bold=color == "ink", halo=True) for left, base, anchor in places
    ]
    # Where trials are, with room for a ring, and what is written beside them.
    room = RING - 5
    marks = [list(zip(*item.points, strict=True)) for item in canvas.items if isinstance(item, Area)]
    taken = [(min(xs) - room, min(ys) - room, max(xs) + room, max(ys) + room) for xs, ys in marks]
    taken += [item.box for item in canvas.items if isinstance(item, Text) and item.halo]
    canvas.add(min(labels, key=lambda label: covered(label.box, taken, canvas)))


def draw_best_so_far(tunings: Sequence[Tuning], styles: Styles, *, by_tokens: bool) -> Canvas | None:
    """The best objective found by then, against trials or the tokens they trained on."""
    found = {tuning.row: tuning.best_so_far() for tuning in tunings}
    lines = {
        row: [(tokens if by_tokens else number, value) for number, tokens, value in points]
        for row, points in found.items()
        if points
    }
    if not lines:
        return None
    spent = [x for points in lines.values() for x, _ in points]
    against = quantity("train/tokens", spent) if by_tokens else Quantity("trials", "trials", "", 1.0, 0)
    canvas, frame = _line_panel(lines, against, tunings[0].objective, "best {} so far against {}")
    for row, points in lines.items():
        color, shape = styles[row]
        corners = points[:1]
        for x, y in points[1:]:
            corners += [(x, corners[-1][1]), (x, y)]
        canvas.add(Line(tuple(frame.at(*corner) for corner in corners), color, 1.8))
        for point in points[:-1]:
            canvas.mark(frame.at(*point), shape, color, 4, title=row)
    add_legend(canvas, {row: styles[row] for row in lines})
    return canvas


def draw_curves(curves: Sequence[Curve], styles: Styles, *, validation: bool, objective: str) -> Canvas | None:
    """Loss by optimizer step; None where fewer than two steps are known of every job."""
    lines = {curve.row: curve.validation if validation else curve.training for curve in curves}
    lines = {row: points for row, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    steps = Quantity("steps", "optimizer steps", "", 1.0, 0)
    canvas, frame = _line_panel(lines, steps, objective if validation else "train/loss", "{} by optimizer step")
    for row, points in lines.items():
        color, shape = styles[row]
        canvas.add(Line(tuple(frame.at(*point) for point in points), color, 1.5))
        marked = points if validation else points[:: max(1, len(points) // 6)]
        for point in marked if len(marked) <= 12 else marked[:: len(marked) // 6]:
            canvas.mark(frame.at(*point), shape, color, 4, title=row)
    add_legend(canvas, {row: styles[row] for row in lines})
    return canvas


def _line_panel(lines: Mapping[str, Sequence[XY]], x: Quantity, y_key: str, title: str) -> tuple[Canvas, Frame]:
    """An empty frame that holds all lines. title: takes the names of y and x."""
    xs, ys = ([point[axis] for points in lines.values() for point in points] for axis in (0, 1))
    y = quantity(y_key, ys)
    canvas = Canvas(PANEL_WIDTH, PANEL_HEIGHT, title.format(y.name, x.name))
    return canvas, framed(canvas, (x, xs), (y, ys), log_y=spans(ys, LOG_FACTOR), x_from_zero=True)


@dataclass(frozen=True)
class ParallelAxis:
    """heights: of each trial's value. labels: what stands beside it, by height."""

    title: str
    heights: Sequence[float]
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
    values = [trial.value for trial in drawn if trial.value is not None]
    inner = without_outliers(values, tuning)
    objective = [min(max(value, min(inner)), max(inner)) for value in values]
    axes = [_axis(quantity(key), [trial.settings[key] for trial in drawn]) for key in keys]
    axes.append(_axis(quantity(tuning.objective, objective), objective))
    canvas = Canvas(PANEL_WIDTH, PANEL_HEIGHT, f"{tuning.row}: settings and objective of every trial")
    lefts = [FIRST_LEFT + i * (PANEL_WIDTH - FIRST_LEFT - LAST_RIGHT) / len(keys) for i in range(len(axes))]
    canvas.add(*(Line(((x, TOP), (x, BOTTOM)), "muted") for x in lefts))
    good = tuning.good_trials()
    lines = zip(drawn, zip(*(axis.heights for axis in axes), strict=True), strict=True)
    for trial, heights in sorted(lines, key=lambda line: (line[0] in good, line[0].is_ok)):  # the best on top
        color = "c2" if trial in good else "c1" if trial.is_ok else "muted"
        width, dash, opacity = 2.2 if trial in good else 1.2, 0.0 if trial.is_ok else 3.0, 0.85 if trial.is_ok else 0.45
        canvas.add(Line(tuple(zip(lefts, heights, strict=True)), color, width, dash, opacity))
    for number, (axis, x) in enumerate(zip(axes, lefts, strict=True)):
        _label_axis(canvas, axis, x, number, is_last=number == len(axes) - 1)
    return canvas


def _text(value: Any) -> str:
    """1 and 1.0 are one value."""
    return repr(float(value)) if is_number(value) else str(value)


def _axis(shown: Quantity, values: Sequence[Any]) -> ParallelAxis:
    """Numbers on their scale; choices, and a few whole numbers, evenly spread."""
    has_fractions = any(isinstance(value, float) for value in values)
    if all(map(is_number, values)) and (has_fractions or len(set(values)) > MOST_KINDS):
        scale = fitted(values, BOTTOM, TOP, log=spans(values, LOG_FACTOR))
        labels = {scale(tick): plain(float(tick / shown.divisor)) for tick in scale.ticks(shown, PIXELS_PER_TICK)}
        return ParallelAxis(shown.name, [scale(value) for value in values], labels)
    ordered = sorted({_text(value): value for value in values}.values(), key=sort_key)
    step = (BOTTOM - TOP) / max(1, len(ordered) - 1)
    heights = {_text(value): BOTTOM - i * step for i, value in enumerate(ordered)}
    labels = {heights[_text(value)]: plain(value) for value in ordered}
    return ParallelAxis(shown.name, [heights[_text(value)] for value in values], labels)


def _label_axis(canvas: Canvas, axis: ParallelAxis, x: float, number: int, *, is_last: bool) -> None:
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
