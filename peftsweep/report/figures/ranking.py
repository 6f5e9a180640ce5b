"""What a comparison looks like: the score of every seed, score against cost, the gap of each method to the best."""

from __future__ import annotations

from collections.abc import Sequence

from peftsweep.records.jobs import REFERENCE
from peftsweep.records.metrics import METRICS, Direction
from peftsweep.records.quantities import Quantity, quantity
from peftsweep.report.analysis.comparison import Group, Row
from peftsweep.report.analysis.frontier import Pareto, Point
from peftsweep.report.figures.canvas import Canvas, Line, Text, series_style, text_width
from peftsweep.report.figures.frame import (
    Box,
    Frame,
    Scale,
    Styles,
    add_legend,
    fitted,
    framed,
    place_labels,
    spans,
    tick_labels,
)
from peftsweep.statistics.pairs import Pair

WIDE, NARROW = 760.0, 350.0  # pixels; the narrow one is for phones
PALE = 0.55
MOST_LABELS = 12  # beside points; more would hide the points
MOST_DOMINATED = 40  # points that are drawn, of those that others beat
MOST_NAMED = 40  # points of the frontier
ROOM_FOR_INTERVALS, LEAST_ROOM = 0.6, 0.1  # of the range of means, and of the largest, on either side
MOST_GAPS = 24  # rows of one figure
FIRST_LINE, LINE = 42.0, 26.0  # pixels from the top, and from one row to the next
LOG_FACTOR = 20.0  # sizes that differ more are shown on a log scale


def draw_pareto(pareto: Pareto, styles: Styles, width: float = WIDE) -> Canvas:
    """The second metric against the first: points with intervals, the frontier, what it dominates paler."""
    x_key, y_key = pareto.metrics[:2]
    dominated = [point for point in pareto.points if not point.on_frontier][:MOST_DOMINATED]
    drawn = {point.name for point in dominated}
    points = [point for point in pareto.points if point.on_frontier or point.name in drawn]
    x, y = (quantity(key, _extremes(points, key)) for key in (x_key, y_key))
    canvas = Canvas(width, 430 if width > NARROW else 350, f"{y.name} against {x.name}, with the Pareto frontier")
    frame = framed(
        canvas,
        (x, _drawn_range(points, x_key)),
        (y, _extremes(points, y_key)),
        log_x=spans([point.values[x_key].mean for point in points], LOG_FACTOR),
        y_ends=(-0.02, 1.02) if METRICS[y_key].is_percent else None,
    )
    _frontier(canvas, frame, pareto, x_key, y_key)
    for point in reversed(points):
        _point(canvas, frame, point, styles[point.name], (x, y))
    is_crowded = len(points) > MOST_LABELS
    named = [point for point in points if point.on_frontier][:MOST_NAMED]
    anchors = [
        (frame.at(point.values[x_key].mean, point.values[y_key].mean), point.name, "ink" if point in named else "muted")
        for point in [*named, *([] if is_crowded else dominated)]
    ]
    place_labels(canvas, anchors, 12.5 if width > NARROW else 11.5, _line_boxes(canvas))
    side = "left" if METRICS[x_key].direction is Direction.LOWER else "right"
    height = "top" if METRICS[y_key].direction is Direction.HIGHER else "bottom"
    canvas.add(Text(canvas.width - 14, 16, f"better: {height} {side}", "muted", "end", 11))
    if is_crowded:
        add_legend(canvas, {point.name: styles[point.name] for point in dominated})
    return canvas


def _line_boxes(canvas: Canvas) -> list[Box]:
    """What labels should keep off: intervals and the frontier, not the grid."""
    return [
        (min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1)
        for item in canvas.items
        if isinstance(item, Line) and item.color not in ("grid", "muted")
        for (x0, y0), (x1, y1) in zip(item.points, item.points[1:], strict=False)
    ]


def _extremes(points: Sequence[Point], key: str) -> list[float]:
    found = [point.values[key] for point in points]
    return [value for estimate in found for value in (estimate.low, estimate.mean, estimate.high) if value is not None]


def _drawn_range(points: Sequence[Point], key: str) -> list[float]:
    """What the frame must hold of a cost: all means, and intervals as far as they don't push the points together."""
    means = [point.values[key].mean for point in points]
    if spans(means, LOG_FACTOR):
        return means
    low, high = min(means), max(means)
    room = max(ROOM_FOR_INTERVALS * (high - low), LEAST_ROOM * max(abs(low), abs(high)))
    return [min(max(value, low - room), high + room) for value in _extremes(points, key)]


def _point(
    canvas: Canvas, frame: Frame, point: Point, style: tuple[str, str], shown: tuple[Quantity, Quantity]
) -> None:
    x, y = (point.values[one.key] for one in shown)
    color, shape = style
    opacity = 1.0 if point.on_frontier else PALE
    low_x, high_x, low_y, high_y = (one.mean if end is None else end for one in (x, y) for end in (one.low, one.high))
    canvas.add(Line((frame.at(x.mean, low_y), frame.at(x.mean, high_y)), color, 1.5, opacity=0.6 * opacity))
    canvas.add(Line((frame.at(low_x, y.mean), frame.at(high_x, y.mean)), color, 1.5, opacity=0.6 * opacity))
    at, title = frame.at(x.mean, y.mean), _describe(point, shown)
    canvas.mark(at, shape, color, 6, hollow=point.origin == REFERENCE, opacity=opacity, title=title)


def _describe(point: Point, shown: tuple[Quantity, Quantity]) -> str:
    """Everything that is known of a point, a third metric too."""
    drawn = {one.key for one in shown}
    rest = (quantity(key, [estimate.mean]) for key, estimate in point.values.items() if key not in drawn)
    parts = []
    for one in (*shown, *rest):
        estimate = point.values[one.key]
        known = estimate.low is not None and estimate.high is not None
        interval = f" ({one.number(estimate.low or 0.0)} to {one.number(estimate.high or 0.0)})" if known else ""
        parts.append(f"{one.name} {one.text(estimate.mean)}{interval}")
    beaten = f"; dominated by {', '.join(point.dominated_by)}" if point.dominated_by else ""
    return f"{point.name}: {', '.join(parts)}{beaten}"


def _frontier(canvas: Canvas, frame: Frame, pareto: Pareto, x_key: str, y_key: str) -> None:
    """A staircase through the points that nothing beats, in two metrics; with a third it would be no line."""
    if len(pareto.metrics) > 2:
        return
    is_lower = METRICS[x_key].direction is Direction.LOWER
    found = sorted(
        ((p.values[x_key].mean, p.values[y_key].mean) for p in pareto.points if p.on_frontier), reverse=not is_lower
    )
    if not found:
        return
    is_higher = METRICS[y_key].direction is Direction.HIGHER
    steps: list[tuple[float, float]] = [(found[0][0], frame.y.low if is_higher else frame.y.high)]
    for x, y in found:
        steps += [(x, steps[-1][1]), (x, y)]
    steps.append((frame.x.high if is_lower else frame.x.low, found[-1][1]))
    canvas.add(Line(tuple(frame.at(x, y) for x, y in steps), "ink", 1.2, dash=4, opacity=0.6))


def draw_seeds(group: Group, width: float = WIDE) -> Canvas | None:
    """The score of every seed of each ranked row, its mean and 95% interval; None where no row has several seeds."""
    ranked = [row for row in group.rows if row.place is not None and row.score][:MOST_GAPS]
    if group.score_name is None or not any(len(row.seeds) > 1 for row in ranked):
        return None
    ends = [end for row in ranked if row.score for end in (row.score.low, row.score.high) if end is not None]
    values = [*ends, *(score for row in ranked for score in row.seed_scores)]
    shown = quantity(group.score_name, values)
    canvas, left = _lines(ranked, f"{shown.name} of every seed", width)
    scale = fitted(values, left, width - 14)
    _axis(canvas, scale, shown, shown.title)
    for number, row in enumerate(ranked):
        assert row.score
        y = FIRST_LINE + LINE * number
        low, high = (row.score.mean if end is None else end for end in (row.score.low, row.score.high))
        canvas.add(Line(((scale(low), y), (scale(high), y)), "muted", 1.5))
        canvas.add(Line(((scale(row.score.mean), y - 8), (scale(row.score.mean), y + 8)), "ink", 2.5))
        for seed, score in zip(row.seeds, row.seed_scores, strict=True):
            is_low = seed in row.collapsed or seed in row.diverged
            word = ", diverged" if seed in row.diverged else ", collapsed" if is_low else ""
            title = f"{row.name}, seed {seed}: {shown.text(score)}{word}"
            shape, color = ("down", "c2") if is_low else ("circle", "c1")
            canvas.mark((scale(score), y), shape, color, 4.5, opacity=0.75, title=title)
    return canvas


def draw_gaps(group: Group, width: float = WIDE) -> Canvas | None:
    """The difference of each ranked row to the best, with its 95% interval; None where nothing was compared."""
    best = next((row.name for row in group.rows if row.place == 1), None)
    gaps = {gap[0]: gap[1:] for pair in group.pairs if best and (gap := _gap_to(best, pair))}
    ranked = [row for row in group.rows if row.name in gaps][:MOST_GAPS]
    if best is None or group.score_name is None or not ranked:
        return None
    values = [value for row in ranked for value in gaps[row.name]]
    shown = quantity(group.score_name, values).as_difference
    canvas, left = _lines(ranked, f"Difference to {best} in {shown.name}", width)
    scale = fitted([0.0, *values], left, width - 14)
    _axis(canvas, scale, shown, f"difference in {shown.title}")
    canvas.add(Line(((scale(0), 22), (scale(0), canvas.height - 40)), "ink", 1.2))
    half = text_width(best, 12) / 2
    canvas.add(Text(min(max(scale(0), half), canvas.width - half), 14, best, "ink", "middle", 12, bold=True))
    for number, row in enumerate(ranked):
        y, (low, mean, high) = FIRST_LINE + LINE * number, gaps[row.name]
        color = "c2" if row.separated_from_best else "c1"
        canvas.add(Line(((scale(low), y), (scale(high), y)), color, 2))
        words = "told apart" if row.separated_from_best else "as good" if row.is_equal else "not told apart"
        told = f"{row.name}: {shown.text(mean, sign=True)} ({shown.number(low)} to {shown.number(high)}), {words}"
        shape = "square" if row.separated_from_best else "circle"
        canvas.mark((scale(mean), y), shape, color, 5.5, hollow=not row.separated_from_best, title=told)
    return canvas


def _gap_to(best: str, pair: Pair) -> tuple[str, float, float, float] | None:
    """name, low, mean, high of other minus best."""
    if best not in (pair.first, pair.second):
        return None
    low = pair.difference if pair.low is None else pair.low
    high = pair.difference if pair.high is None else pair.high
    if pair.second == best:
        return pair.first, low, pair.difference, high
    return pair.second, -high, -pair.difference, -low


def _lines(rows: Sequence[Row], title: str, width: float) -> tuple[Canvas, float]:
    """A drawing with a line for each row, its name in front, and where the data begin."""
    canvas = Canvas(width, 72 + LINE * len(rows), title)
    left = min(14 + max(text_width(row.name, 12) for row in rows), 0.42 * width)
    most = max(4, int((left - 14) / text_width("n", 12)))
    for number, row in enumerate(rows):
        label = row.name if len(row.name) <= most else f"{row.name[: most - 1]}…"
        canvas.add(Text(left - 10, FIRST_LINE + LINE * number + 4, label, "ink", "end", 12))
    return canvas, left


def _axis(canvas: Canvas, scale: Scale, shown: Quantity, title: str) -> None:
    bottom = canvas.height - 40
    ticks = scale.ticks(shown)
    for tick, label in zip(ticks, tick_labels(ticks, shown), strict=True):
        canvas.add(Line(((scale(tick), 26), (scale(tick), bottom)), "grid"))
        canvas.add(Text(scale(tick), bottom + 15, label, "muted", "middle", 11))
    canvas.add(Text(canvas.width - 14, canvas.height - 6, title, "ink", "end", 12))


def styles_of(names: Sequence[str]) -> Styles:
    """Colour and shape of each row, the same in all figures of one group."""
    return {name: series_style(number) for number, name in enumerate(names)}
