"""What a page tells of each group of a comparison: its answer, tables, figures and notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from peftsweep.records.jobs import REFERENCE, Job, Loaded
from peftsweep.records.quantities import NARROW_SPACE, NO_BREAK_SPACE, counted, format_settings, joined, quantity, some
from peftsweep.report.analysis.comparison import Group, Row
from peftsweep.report.analysis.frontier import Pareto
from peftsweep.report.analysis.sentences import answer, protocol
from peftsweep.report.analysis.tuning import (
    Tuning,
    edge_warnings,
    parameter_importance,
    read_curve,
    read_tuning,
    tuning_sentences,
)
from peftsweep.report.figures import ranking, study
from peftsweep.report.figures.canvas import Canvas, inline_svg
from peftsweep.report.figures.frame import Styles
from peftsweep.report.page.gallery import read_gallery
from peftsweep.report.page.solved import find_solved
from peftsweep.report.tables import Cell, build_columns
from peftsweep.statistics.dominance import DRAWS

MOST_ROWS, MOST_PAIRS = 200, 300  # on a page; all of them are in comparison.json
MOST_ROWS_DRAWN = 12  # of one group: the best
MOST_NAMES = 3  # of those that dominate one method
MOST_BEATEN = 6  # told in words; every point of the figure tells its own
SPLITS = "train valid test"  # in the order in which they are used
LEAST_SHARE = 0.01  # of draws, for a place on the frontier to be told
WIDTHS = (ranking.WIDE, ranking.NARROW)  # the page's style shows the one that fits
Figures = dict[str, Canvas]  # all of a page, by the names of their files


def build_part(
    name: str, group: Group, pareto: Pareto | None, loaded: Loaded, figures: Figures, *, is_drawn: bool
) -> dict[str, Any]:
    """What page.html.jinja reads of one group; empty parts are left out of the page.

    name: of its figures, and of its place in the page; is_drawn: with figures, which are added to `figures`.
    """
    locations = {location for row in group.rows for location in row.locations}
    studies = {row.study for row in group.rows if row.study}
    jobs = [job for job in loaded.jobs if job.location in locations or job.result.study in studies]
    drawn = group.rows[:MOST_ROWS_DRAWN] if is_drawn else ()
    tunings = [found for row in drawn if (found := read_tuning(row, jobs, loaded.studies))]
    styles = ranking.styles_of([row.name for row in group.rows])
    searches = {
        what: study.draw_best_so_far(tunings, styles, by_tokens=what == "tokens") for what in ("trials", "tokens")
    }
    return {
        "id": name,
        "group": group,
        "answer": answer(group),
        "warnings": tuple(_warnings(group, drawn)),
        "table": build_table(group),
        "frontier": pareto,
        "pareto": _show(figures, f"{name}-pareto", *(ranking.draw_pareto(pareto, styles, width) for width in WIDTHS))
        if is_drawn and pareto and len(pareto.points) > 1
        else "",
        "pareto_notes": tuple(_pareto_notes(pareto)),
        "gaps": _show(figures, f"{name}-differences", *(ranking.draw_gaps(group, width) for width in WIDTHS))
        if is_drawn
        else "",
        "seeds": _show(figures, f"{name}-seeds", *(ranking.draw_seeds(group, width) for width in WIDTHS))
        if is_drawn
        else "",
        "pairs": list(_pairs(group)),
        "pairs_title": quantity(group.score_name).as_difference.title if group.score_name else "",
        "tuned": [_tuned(tuning, f"{name}-{number}", figures) for number, tuning in enumerate(tunings, 1)],
        "untold": sum(bool(row.trials) for row in group.rows) - len(tunings),
        "searches": [_show(figures, f"{name}-best-by-{what}", canvas) for what, canvas in searches.items() if canvas],
        "improves": "falls" if all(tuning.lower_is_better for tuning in tunings) else "rises",
        "curves": _curves(drawn, jobs, group.objective or "valid/loss", styles, name, figures),
        "gallery": read_gallery(drawn, jobs),
        "solved": find_solved(drawn, jobs),
        "protocol": protocol(group),
        "environment": _environment(jobs),
        "datasets": _datasets(jobs),
    }


def _show(figures: Figures, name: str, *drawings: Canvas | None) -> str:
    """A figure as part of the page, empty if there is none: one drawing, or a wide and a narrow one."""
    found = [canvas for canvas in drawings if canvas]
    if not found:
        return ""
    figures[name] = found[0]
    classes = ("",) if len(found) == 1 else ("wide", "narrow")
    return "".join(inline_svg(canvas, css_class) for canvas, css_class in zip(found, classes, strict=True))


def build_table(group: Group) -> dict[str, Any]:
    """The table of a group, with its first rows: what none of them measured has no column.

    states: what the filter knows a row by; marks: words beside its name; untold: how many rows are left out.
    """
    rows = group.rows[:MOST_ROWS]
    columns = build_columns(group, rows)
    lines = []
    for number, row in enumerate(rows):
        settings = format_settings(row.best, short=True).replace(" ", NO_BREAK_SPACE)
        cells = [_breakable(found[number]) for _, found in columns]
        line = {"name": row.name, "cells": cells, "states": list(_states(row))}
        line["settings"] = settings.replace(f",{NO_BREAK_SPACE}", ", ")  # lines break between settings, not within one
        lines.append(line | {"marks": tuple(_marks(row))})
    states = list(dict.fromkeys(state for row in rows for state in _states(row)))
    untold = len(group.rows) - len(rows)
    return {"columns": [column for column, _ in columns], "lines": lines, "states": states, "untold": untold}


def _breakable(cell: Cell) -> Cell:
    """An interval may break before its upper end: so all columns find room on a page of 1280 pixels."""
    return replace(cell, note=cell.note.replace(f"to{NARROW_SPACE}", "to "))


def _states(row: Row) -> Iterator[str]:
    """Words of the filter: each a way to narrow the rows."""
    yield "published reference" if row.origin == REFERENCE else "ranked" if row.place is not None else "not scored"
    if row.place == 1 or row.is_equal or row.separated_from_best is False:
        yield "best, or not told apart from it"
    if row.causes:
        yield "with failures"


def _marks(row: Row) -> Iterator[str]:
    if row.origin == REFERENCE:
        yield "published"
    elif row.score is None:
        yield "not scored"
    if row.causes:
        yield counted(sum(row.causes.values()), "failure")


def _pairs(group: Group) -> Iterator[dict[str, Any]]:
    """Rows compared, in words: pairs with the best first, no more than a person could read."""
    if group.score_name is None:
        return
    best = {row.name for row in group.rows if row.place == 1}
    equal = {row.name for row in group.rows if row.is_equal}
    ordered = sorted(group.pairs, key=lambda pair: not best & {pair.first, pair.second})
    for pair in ordered[:MOST_PAIRS]:
        shown = quantity(group.score_name, [pair.difference]).as_difference
        ends = [shown.number(end, sign=True) for end in (pair.low, pair.high) if end is not None]
        alike = "as good" if {pair.first, pair.second} <= equal else "not told apart"
        told = "told apart" if pair.is_separated else alike
        yield {
            "pair": pair,
            "difference": shown.number(pair.difference, sign=True),
            "interval": " to ".join(ends),
            "p_value": "< 0.001" if pair.adjusted_p_value < 0.001 else f"{pair.adjusted_p_value:.3f}",
            "verdict": f"{told} as adapters" if pair.is_about_adapters else told,
        }


def _pareto_notes(pareto: Pareto | None) -> Iterator[str]:
    """What the figure can't show: how sure a place on the frontier is, and who is missing."""
    if pareto is None:
        return
    if len(pareto.points) < 2:
        if pareto.missing:
            names = joined(quantity(key).name for key in pareto.metrics)
            yield f"Not drawn, as only {pareto.points[0].name} has {names}; {some(pareto.missing)} lacks one of them."
        return
    if len(pareto.metrics) > 2:
        names = joined(quantity(key).name for key in pareto.metrics)
        yield f"On the frontier is what nothing beats in {names} together; the figure shows the first two."
    shares = sorted(((point.share or 0.0, point.name) for point in pareto.points), reverse=True)
    sure = [f"{name} {share:.0%}" for share, name in shares if share >= LEAST_SHARE]
    if sure:
        draws = f"{DRAWS:,} bootstrap draws over seeds and test items"
        yield f"Share of {draws} in which a method is on the frontier: {', '.join(sure)}."
    beaten = [f"{point.name} (by {_some(point.dominated_by)})" for point in pareto.points if point.dominated_by]
    if beaten:
        more = f" and {len(beaten) - MOST_BEATEN} more" if len(beaten) > MOST_BEATEN else ""
        yield f"Dominated: {', '.join(beaten[:MOST_BEATEN])}{more}."
    if len(beaten) > (most := ranking.MOST_DOMINATED):
        yield f"Drawn are the frontier and, of what is dominated, the {most} best in the first metric."
    if pareto.missing:
        yield f"Not drawn, as one of the metrics was not measured: {some(pareto.missing)}."


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return joined(names if more <= 1 else [*names[:MOST_NAMES], f"{more} more"])


def _warnings(group: Group, drawn: Sequence[Row]) -> Iterator[str]:
    yield from group.warnings
    yield from (warning for row in group.rows for warning in row.warnings)
    if on_edge := [row.name for row in drawn if row.edges]:
        yield (
            f"The best settings of {joined(on_edge)} lie at an end of what was searched: better ones may lie beyond. "
            "What to try is told below, under how each method was tuned."
        )


def _tuned(tuning: Tuning, name: str, figures: Figures) -> dict[str, Any]:
    """How one row was tuned, in figures and words."""
    importance = study.draw_importance(parameter_importance(tuning), tuning.row)
    return {
        "name": tuning.row,
        "learning_rates": _show(figures, f"{name}-learning-rates", study.draw_learning_rates(tuning)),
        "sentences": tuning_sentences(tuning),
        "warnings": edge_warnings(tuning),
        "parallel": _show(figures, f"{name}-settings", study.draw_parallel(tuning)),
        "importance": _show(figures, f"{name}-importance", importance),
    }


def _curves(
    rows: Sequence[Row], jobs: Sequence[Job], objective: str, styles: Styles, name: str, figures: Figures
) -> list[str]:
    """Of each row, the first job that was scored."""
    by_location = {job.location: job for job in jobs}
    found = [read_curve(row, by_location[row.locations[0]], objective) for row in rows if row.locations]
    curves = [curve for curve in found if curve]
    drawn = {
        what: study.draw_curves(curves, styles, validation=what == "validation", objective=objective)
        for what in ("training", "validation")
    }
    return [_show(figures, f"{name}-{what}-loss", canvas) for what, canvas in drawn.items() if canvas]


def _environment(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    """Each thing known of the environment, with all the values it had."""
    found: dict[str, dict[str, None]] = {}
    for job in jobs:
        for key, value in job.result.environment.items():
            found.setdefault(key, {})[str(value)] = None
    return [(key, "; ".join(values)) for key, values in found.items()]


def _datasets(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Each once."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for info in (info for job in jobs for info in job.result.datasets):
        told = {key: info.get(key, "") for key in ("name", "split", "source", "rows", "digest")}
        found.setdefault(tuple(map(str, told.values())), told)
    return sorted(found.values(), key=lambda info: SPLITS.find(info["split"]))
