"""What tuning looks like: loss against learning rate, best so far, learning curves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from peftsweep.records.quantities import Quantity, format_settings, plain, quantity
from peftsweep.records.space import CAPACITY
from peftsweep.report.analysis.tuning import Curve, Trial, Tuning, sort_key
from peftsweep.report.figures.canvas import (
    SHAPES,
    XY,
    Anchor,
    Area,
    Canvas,
    Line,
    Text,
    series_style,
    text_width,
)
from peftsweep.report.figures.comparison import Styles
from peftsweep.report.figures.frame import Box, Frame, add_legend, covered, framed

PANEL_WIDTH, PANEL_HEIGHT = 360.0, 270.0
OUTLIER = 6.0  # times the distance from best to median: what lies beyond would flatten all the rest
RING = 9.0  # pixels, radius of what is drawn around a trial


def draw_learning_rates(tuning: Tuning) -> Canvas | None:
    """The objective of every trial against its learning rate; None where none has both.

    One colour and shape a capacity; hollow: ended early, or failed; rings: the best and the default.
    """
    drawn = [trial for trial in tuning.trials if trial.lr and trial.value is not None]
    if not drawn:
        return None
    tried = {str(value): value for trial in tuning.trials for value in [trial.settings.get(CAPACITY)]}
    capacities = sorted(tried.values(), key=sort_key)  # None where a method has none
    canvas = Canvas(PANEL_WIDTH, PANEL_HEIGHT, f"{tuning.row}: objective against learning rate")
    shown = quantity(tuning.objective, [trial.value for trial in drawn if trial.value is not None])
    rates = [trial.lr for trial in tuning.trials if trial.lr]
    searched = [end for found in tuning.space if found.key == "hparams.lr" for end in (found.low, found.high) if end]
    frame = framed(
        canvas,
        (quantity("hparams.lr"), [*rates, *searched]),
        (shown, inner := without_outliers(drawn, tuning)),
        log_x=True,
        log_y=spans(inner),
    )
    for trial in sorted(drawn, key=lambda trial: trial.is_ok):
        color, shape = series_style(capacities.index(trial.settings.get(CAPACITY)))
        assert trial.lr is not None
        assert trial.value is not None
        told = f"trial {trial.name}, {format_settings(trial.settings)}: {shown.text(trial.value)} ({trial.status})"
        canvas.mark(frame.at(trial.lr, trial.value), shape, color, 5, hollow=not trial.is_ok, title=told)
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


def without_outliers(trials: Sequence[Trial], tuning: Tuning) -> list[float]:
    """The values that the frame must hold; the others are drawn at its edge."""
    values = [trial.value for trial in trials if trial.value is not None]
    best = min(values) if tuning.lower_is_better else max(values)
    limit = OUTLIER * statistics.median(abs(value - best) for value in values)
    return [value for value in values if abs(value - best) <= limit or limit == 0]


def spans(values: Sequence[float]) -> bool:
    """Whether a log scale shows it better: losses that differ more than fivefold."""
    return min(values) > 0 and max(values) > 5 * min(values)


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
    taken = _taken(canvas)
    canvas.add(min(labels, key=lambda label: covered(label.box, taken, canvas)))


def _taken(canvas: Canvas) -> list[Box]:
    """Where trials are, with room for a ring, and what is written beside them."""
    room = RING - 5
    marks = [list(zip(*item.points, strict=True)) for item in canvas.items if isinstance(item, Area)]
    boxes = [(min(xs) - room, min(ys) - room, max(xs) + room, max(ys) + room) for xs, ys in marks]
    return [*boxes, *(item.box for item in canvas.items if isinstance(item, Text) and item.halo)]


def draw_best_so_far(tunings: Sequence[Tuning], styles: Styles, *, by_tokens: bool) -> Canvas | None:
    """The best objective found by then, against trials or the tokens they trained on."""
    lines = {tuning.row: tuning.best_so_far() for tuning in tunings}
    lines = {row: points for row, points in lines.items() if points}
    if not lines:
        return None
    column = 1 if by_tokens else 0
    shown = quantity(tunings[0].objective, [value for points in lines.values() for *_, value in points])
    spent = [point[column] for points in lines.values() for point in points]
    against = quantity("train/tokens", spent) if by_tokens else Quantity("trials", "trials", "", 1.0, 0)
    canvas = Canvas(PANEL_WIDTH, PANEL_HEIGHT, f"best {shown.name} so far against {against.name}")
    values = [value for points in lines.values() for *_, value in points]
    frame = framed(canvas, (against, spent), (shown, values), log_y=spans(values), x_from_zero=True)
    for row, points in lines.items():
        color, shape = styles[row]
        _steps(canvas, frame, [(point[column], point[2]) for point in points], color, shape, row)
    add_legend(canvas, {row: styles[row] for row in lines})
    return canvas


def _steps(canvas: Canvas, frame: Frame, points: Sequence[XY], color: str, shape: str, row: str) -> None:
    corners: list[XY] = []
    for x, y in points:
        corners += [(x, corners[-1][1])] if corners else []
        corners.append((x, y))
    canvas.add(Line(tuple(frame.at(x, y) for x, y in corners), color, 1.8))
    for x, y in points[:-1]:
        canvas.mark(frame.at(x, y), shape, color, 4, title=row)


def draw_curves(curves: Sequence[Curve], styles: Styles, *, validation: bool, objective: str) -> Canvas | None:
    """Loss by optimizer step; None where fewer than two steps are known of every job."""
    lines = {curve.row: curve.validation if validation else curve.training for curve in curves}
    lines = {row: points for row, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    values = [y for points in lines.values() for _, y in points]
    shown = quantity(objective if validation else "train/loss", values)
    steps = Quantity("steps", "optimizer steps", "", 1.0, 0)
    canvas = Canvas(PANEL_WIDTH, PANEL_HEIGHT, f"{shown.name} by optimizer step")
    x = [x for points in lines.values() for x, _ in points]
    frame = framed(canvas, (steps, x), (shown, values), log_y=spans(values), x_from_zero=True)
    for row, points in lines.items():
        color, shape = styles[row]
        canvas.add(Line(tuple(frame.at(*point) for point in points), color, 1.5))
        marked = points if validation else points[:: max(1, len(points) // 6)]
        for point in marked if len(marked) <= 12 else marked[:: len(marked) // 6]:
            canvas.mark(frame.at(*point), shape, color, 4, title=row)
    add_legend(canvas, {row: styles[row] for row in lines})
    return canvas
