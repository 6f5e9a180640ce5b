"""Scales, ticks, drawings: what a figure shows, and that it can be read."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from peftsweep.records.quantities import Quantity, quantity
from peftsweep.records.results import Status
from peftsweep.report.analysis.comparison import Estimate, Group, GroupKey, Row
from peftsweep.report.analysis.frontier import Pareto, Point
from peftsweep.report.analysis.tuning import Curve, Trial, Tuning
from peftsweep.report.figures.canvas import (
    COLORS,
    FILE_MARGIN,
    PNG_SCALE,
    SERIES,
    Area,
    Canvas,
    Line,
    Text,
    dashes,
    file_svg,
    inline_svg,
    save_png,
    series_style,
)
from peftsweep.report.figures.frame import Scale, fitted, place_labels, tick_labels
from peftsweep.report.figures.ranking import NARROW, draw_gaps, draw_pareto, draw_seeds, styles_of
from peftsweep.report.figures.study import (
    draw_best_so_far,
    draw_curves,
    draw_importance,
    draw_learning_rates,
    draw_parallel,
)
from peftsweep.statistics.pairs import Pair

BARE = Quantity("x", "x", "", 1.0, 3)
SCORE, MEMORY = "test/accuracy", "memory/train_peak_reserved_bytes"
KEY = GroupKey("metamath", 1, "i", "pocket-llama", "r", "confirm", 100, 8)


def words(canvas: Canvas) -> list[str]:
    return [item.text for item in canvas.items if isinstance(item, Text)]


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", [*SERIES, "ink", "muted"])
def test_every_colour_of_a_series_stands_out_from_paper(name: str) -> None:
    assert 1.05 / (luminance(COLORS[name]) + 0.05) >= 3.0  # WCAG's least for graphics


def test_no_two_of_forty_nine_series_share_colour_and_shape() -> None:
    assert len({series_style(number) for number in range(49)}) == 49


def test_a_log_scale_puts_the_geometric_mean_in_the_middle() -> None:
    assert Scale(1e-4, 1e-2, 0.0, 100.0, log=True)(1e-3) == pytest.approx(50.0)


def test_ticks_of_a_log_scale_over_decades_are_powers_of_ten() -> None:
    assert Scale(1e-5, 1e-1, 0.0, 320.0, log=True).ticks(BARE) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])


def test_ticks_are_round_in_the_unit_that_is_shown() -> None:
    shown = quantity(MEMORY, [12e9, 20e9])
    ticks = Scale(11.3e9, 20.6e9, 0.0, 320.0).ticks(shown)
    assert [tick / 1e9 for tick in ticks] == pytest.approx([12, 14, 16, 18, 20])


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([1.3, 1.35, 1.4], ["1.30", "1.35", "1.40"]),
        ([-0.5, 0.0, 0.5], ["\N{MINUS SIGN}0.5", "0", "0.5"]),
        ([10.0, 20.0], ["10", "20"]),
    ],
)
def test_ticks_of_an_even_scale_have_equally_many_digits(ticks: list[float], labels: list[str]) -> None:
    assert tick_labels(ticks, BARE) == labels


def test_ticks_of_a_log_scale_have_as_many_digits_as_each_needs() -> None:
    assert tick_labels([0.05, 0.1, 1.0], BARE, log=True) == ["0.05", "0.1", "1"]


def test_counts_have_whole_ticks_only() -> None:
    ticks = Scale(0, 3, 0.0, 700.0).ticks(Quantity("trials", "trials", "", 1.0, 0))
    assert ticks == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("values", [[], [5.0], [0.0, 0.0], [math.nan, 1.0], [-2.0, 3.0]])
@pytest.mark.parametrize("log", [False, True])
def test_a_scale_is_found_for_whatever_was_measured(values: list[float], log: bool) -> None:
    scale = fitted(values, 0.0, 100.0, log=log)
    assert scale.low < scale.high
    assert all(-1e-6 <= scale(tick) <= 100.0 + 1e-6 for tick in scale.ticks(BARE))


def test_labels_of_points_that_lie_close_together_do_not_cover_each_other() -> None:
    canvas = Canvas(400, 300, "")
    place_labels(canvas, [((200.0 + 3 * i, 150.0 + 2 * i), f"method-{i}", "ink") for i in range(6)])
    boxes = [item.box for item in canvas.items if isinstance(item, Text)]
    assert len(boxes) == 6
    for (a, b, c, d), (e, f, g, h) in itertools.combinations(boxes, 2):
        assert c <= e or g <= a or d <= f or h <= b


def test_a_label_stays_on_the_canvas() -> None:
    canvas = Canvas(300, 200, "")
    place_labels(canvas, [((295.0, 100.0), "a-long-name", "ink")])
    (label,) = [item for item in canvas.items if isinstance(item, Text)]
    assert label.box[2] <= 300


def test_a_figure_in_a_file_is_well_formed_and_needs_no_style_sheet() -> None:
    canvas = Canvas(100, 50, 'a <b> & "c"')
    canvas.add(Text(1, 2, "x < y & z"))
    canvas.mark((5, 5), "diamond", "c1", title="<&>")
    root = ElementTree.fromstring(file_svg(canvas))
    assert root.get("aria-label") == 'a <b> & "c"'
    assert "var(" not in file_svg(canvas)


def test_a_figure_in_a_page_takes_the_colours_of_the_page() -> None:
    canvas = Canvas(100, 50, "t")
    canvas.mark((5, 5), "circle", "c2")
    assert 'fill="var(--c2)"' in inline_svg(canvas)
    assert COLORS["c2"] not in inline_svg(canvas)


def test_a_png_is_as_large_as_told_and_holds_the_colours(tmp_path: Path) -> None:
    canvas = Canvas(100, 50, "t")
    canvas.add(Line(((0, 25), (100, 25)), "c2", 10))
    save_png(canvas, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == ((100 + 2 * FILE_MARGIN) * PNG_SCALE, (50 + 2 * FILE_MARGIN) * PNG_SCALE)
        middle = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
    assert middle == tuple(int(COLORS["c2"][i : i + 2], 16) for i in (1, 3, 5))


def test_half_of_a_dashed_line_is_drawn() -> None:
    drawn = [math.dist(*piece) for piece in dashes([(0, 0), (80, 0)], 4)]
    assert sum(drawn) == pytest.approx(40)


def point(name: str, score: float, memory: float, *, on_frontier: bool = True, origin: str = "own") -> Point:
    values = {MEMORY: Estimate(memory, None, None, 1), SCORE: Estimate(score, score - 0.05, score + 0.05, 3)}
    return Point(name, origin, values, on_frontier, 0.5, () if on_frontier else ("best",))


def test_the_frontier_figure_names_axes_with_units_and_every_method() -> None:
    points = (point("best", 0.8, 20e9), point("small", 0.5, 4e9), point("poor", 0.4, 19e9, on_frontier=False))
    found = words(draw_pareto(Pareto((MEMORY, SCORE), points), styles_of([p.name for p in points])))
    assert {"accuracy, %", "peak memory, training, GB", "best", "small", "poor", "better: top left"} <= {*found}


def test_a_point_tells_what_dominates_it() -> None:
    points = (point("best", 0.8, 4e9), point("poor", 0.4, 19e9, on_frontier=False))
    assert "dominated by best" in inline_svg(draw_pareto(Pareto((MEMORY, SCORE), points), styles_of(["best", "poor"])))


def test_many_points_are_named_in_a_legend_that_makes_room_for_itself() -> None:
    points = tuple(point(f"m{i}", 0.8 - 0.02 * i, 4e9 + i * 1e8, on_frontier=i == 0) for i in range(30))
    canvas = draw_pareto(Pareto((MEMORY, SCORE), points), styles_of([p.name for p in points]), NARROW)
    assert {f"m{i}" for i in range(30)} <= {*words(canvas)}
    assert all(item.y < canvas.height for item in canvas.items if isinstance(item, Text))


def group(*pairs: Pair) -> Group:
    rows = [Row(n, n, "m", "t", "own", None, {}, place=i + 1) for i, n in enumerate(("lora", "oft", "ia3"))]
    return Group(KEY, "t", SCORE, None, tuple(rows), pairs)


def test_gaps_are_told_as_other_minus_best_whichever_way_the_pair_was_compared() -> None:
    told = (
        Pair("oft", "lora", -0.1, -0.15, -0.05, 0.01, 0.02, True, "t", (3, 3)),
        Pair("lora", "ia3", 0.2, 0.1, 0.3, 0.01, 0.02, True, "t", (3, 3)),
    )
    canvas = draw_gaps(group(*told))
    assert canvas is not None
    svg = inline_svg(canvas)
    assert "oft: \N{MINUS SIGN}10.0" in svg
    assert "ia3: \N{MINUS SIGN}20.0" in svg
    assert "difference in accuracy, percentage points" in words(canvas)


def test_every_seed_is_a_point_and_one_that_collapsed_a_triangle() -> None:
    estimate = Estimate(0.7, 0.5, 0.9, 3)
    row = Row("lora", "lora", "m", "t", "own", None, {}, score=estimate, place=1, seeds=(1, 2, 3), collapsed=(2,))
    canvas = draw_seeds(Group(KEY, "t", SCORE, None, (replace(row, seed_scores=(0.9, 0.2, 1.0)),)))
    assert canvas is not None
    titles = [item.title for item in canvas.items if isinstance(item, Area)]
    assert titles == ["lora, seed 1: 90.0%", "lora, seed 2: 20.0%, collapsed", "lora, seed 3: 100.0%"]
    assert [item.color for item in canvas.items if isinstance(item, Area)] == ["c1", "c2", "c1"]


def test_single_seeds_are_no_figure() -> None:
    row = Row("lora", "lora", "m", "t", "own", None, {}, score=Estimate(0.7, 0.5, 0.9, 1), place=1, seeds=(1,))
    assert draw_seeds(Group(KEY, "t", SCORE, None, (replace(row, seed_scores=(0.7,)),))) is None


def test_nothing_is_drawn_of_gaps_that_were_not_compared() -> None:
    assert draw_gaps(group()) is None


def tuned(*values: float | None) -> Tuning:
    trials = [
        Trial(
            str(i),
            Status.FAILED if v is None else Status.OK,
            {"hparams.lr": 10.0 ** -(i + 1), "method.capacity": 8 * (i % 2 + 1)},
            v,
            5e4,
        )
        for i, v in enumerate(values)
    ]
    return Tuning("lora", "valid/loss", tuple(trials), {})


def test_loss_against_learning_rate_marks_the_best_and_keeps_failed_trials() -> None:
    canvas = draw_learning_rates(tuned(0.5, None, 0.3))
    assert canvas is not None
    assert {"best", "learning rate, log scale", "validation loss", "capacity", "8", "16"} <= {*words(canvas)}
    assert "(ok)" in inline_svg(canvas)
    assert ": failed" in inline_svg(canvas)


@pytest.mark.parametrize("lr", [1e-3, 1.2e-3, 0.8e-3])
def test_the_word_beside_the_best_trial_hides_no_other(lr: float) -> None:
    settings = ((1e-3, 0.30), (lr, 0.33), (1e-4, 0.6), (1e-2, 0.5))
    trials = tuple(Trial("0", Status.OK, {"hparams.lr": rate}, loss, 1.0) for rate, loss in settings)
    canvas = draw_learning_rates(replace(tuned(0.5), trials=trials, best={"hparams.lr": 1e-3}))
    assert canvas is not None
    (best,) = [item.box for item in canvas.items if isinstance(item, Text) and item.text == "best"]
    for mark in (item for item in canvas.items if isinstance(item, Area)):
        (left, right), (top, bottom) = ((min(side), max(side)) for side in zip(*mark.points, strict=True))
        assert right <= best[0] or best[2] <= left or bottom <= best[1] or best[3] <= top


def test_a_diverged_trial_does_not_flatten_all_others() -> None:
    canvas = draw_learning_rates(tuned(0.50, 0.52, 0.54, 0.56, 900.0))
    assert canvas is not None
    assert not any(word.startswith(("800", "900")) for word in words(canvas))


def test_trials_without_a_value_are_no_figure() -> None:
    assert draw_learning_rates(tuned(None, None)) is None
    assert draw_best_so_far([tuned(None)], styles_of(["lora"]), by_tokens=False) is None
    assert draw_parallel(tuned(None, 0.5)) is None


def test_best_so_far_is_drawn_against_tokens_in_a_unit_that_fits() -> None:
    canvas = draw_best_so_far([tuned(0.5, 0.3)], styles_of(["lora"]), by_tokens=True)
    assert canvas is not None
    assert "training tokens, thousands" in words(canvas)


def test_parallel_coordinates_have_an_axis_for_each_setting_and_a_line_for_each_trial() -> None:
    canvas = draw_parallel(tuned(0.5, 0.4, 0.3))
    assert canvas is not None
    assert {"learning rate", "capacity", "validation loss"} <= {*words(canvas)}
    assert sum(isinstance(item, Line) and len(item.points) == 3 for item in canvas.items) == 3


def test_curves_of_one_point_are_no_figure() -> None:
    curve = Curve("lora", ((1.0, 2.0), (2.0, 1.0)), ((2.0, 1.0),))
    styles = styles_of(["lora"])
    assert draw_curves([curve], styles, validation=True, objective="valid/loss") is None
    training = draw_curves([curve], styles, validation=False, objective="valid/loss")
    assert training is not None
    assert {"training loss", "optimizer steps"} <= {*words(training)}


def test_importance_is_drawn_in_percent() -> None:
    canvas = draw_importance({"hparams.lr": 0.8, "method.capacity": 0.2}, "lora")
    assert canvas is not None
    assert {"80", "20", "learning rate"} <= {*words(canvas)}


def test_a_third_metric_draws_no_line_of_the_frontier_but_is_told_of_each_point() -> None:
    points = [point("best", 0.8, 20e9), point("small", 0.5, 4e9)]
    points = [Point(p.name, p.origin, p.values | {"drift": Estimate(0.125, None, None, 1)}, True, 0.5) for p in points]
    canvas = draw_pareto(Pareto((MEMORY, SCORE, "drift"), tuple(points)), styles_of(["best", "small"]))
    assert "drift 0.125" in inline_svg(canvas)
    assert not any(isinstance(item, Line) and item.dash for item in canvas.items)
