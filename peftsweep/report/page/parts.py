"""What a page tells of each group of a comparison: its answer, table, figures and notes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftsweep.records.jobs import Job, Loaded
from peftsweep.records.quantities import joined, quantity, some
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
from peftsweep.report.figures.canvas import Canvas, file_svg, inline_svg
from peftsweep.report.figures.frame import Styles
from peftsweep.report.figures.png import save_png
from peftsweep.report.figures.ranking import MOST_DOMINATED, NARROW, WIDE, draw_gaps, draw_pareto, styles_of
from peftsweep.report.figures.study import (
    draw_best_so_far,
    draw_curves,
    draw_importance,
    draw_learning_rates,
    draw_parallel,
)
from peftsweep.report.page.gallery import read_gallery
from peftsweep.report.page.table import build_pairs, build_table, pairs_title
from peftsweep.statistics.frontier import DRAWS

MOST_ROWS_DRAWN = 12  # of one group: the best
MOST_NAMES = 3  # of those that dominate one method
MOST_BEATEN = 6  # told in words; every point of the figure tells its own
MOST_FAILURES = 200  # lines; all are in comparison.json
SPLITS = "train valid test"  # in the order in which they are used
LEAST_SHARE = 0.01  # of draws, for a place on the frontier to be told


class Figures:
    """Every figure of a page: drawn once, shown in the page and kept as files."""

    def __init__(self) -> None:
        self.drawn: dict[str, Canvas] = {}

    def show(self, name: str, canvas: Canvas | None) -> str:
        """The figure as part of the page; empty if there is none."""
        if canvas is None:
            return ""
        self.drawn[name] = canvas
        return inline_svg(canvas)

    def show_both(self, name: str, draw: Callable[[float], Canvas | None]) -> str:
        """A wide and a narrow drawing of one figure, of which the page's style shows the one that fits."""
        wide, narrow = draw(WIDE), draw(NARROW)
        if wide is None or narrow is None:
            return ""
        self.drawn[name] = wide
        return inline_svg(wide, "wide") + inline_svg(narrow, "narrow")

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, canvas in self.drawn.items():
            (folder / f"{name}.svg").write_text(file_svg(canvas), encoding="utf-8")
            save_png(canvas, folder / f"{name}.png")


@dataclass(frozen=True)
class TunedRow:
    """How one row was tuned. Figures are parts of the page."""

    name: str
    learning_rates: str
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    parallel: str = ""
    importance: str = ""


def build_part(
    name: str, group: Group, pareto: Pareto | None, loaded: Loaded, figures: Figures, *, is_drawn: bool
) -> dict[str, Any]:
    """What page.html.jinja reads of one group; empty parts are left out of the page.

    name: of its figures, and of its place in the page; is_drawn: with figures.
    """
    jobs = _jobs_of(group, loaded.jobs)
    drawn = group.rows[:MOST_ROWS_DRAWN] if is_drawn else ()
    tunings = [found for row in drawn if (found := read_tuning(row, jobs, loaded.studies))]
    styles = styles_of([row.name for row in group.rows])
    tuned = tuple(_tuned(tuning, f"{name}-{place + 1}", figures) for place, tuning in enumerate(tunings))
    failures = [(row.name, cause, count) for row in group.rows for cause, count in row.causes.items()]
    return {
        "id": name,
        "group": group,
        "answer": answer(group),
        "warnings": tuple(_warnings(group, tuned)),
        "table": build_table(group),
        "pareto": figures.show_both(f"{name}-pareto", lambda width: draw_pareto(pareto, styles, width))
        if is_drawn and pareto and len(pareto.points) > 1
        else "",
        "pareto_metrics": len(pareto.metrics) if pareto else 0,
        "pareto_notes": tuple(_pareto_notes(pareto)),
        "gaps": figures.show_both(f"{name}-differences", lambda width: draw_gaps(group, width)) if is_drawn else "",
        "pairs": build_pairs(group),
        "pairs_title": pairs_title(group),
        "tuned": tuned,
        "untold": sum(bool(row.trials) for row in group.rows) - len(tuned),
        "searches": tuple(_searches(tunings, styles, name, figures)),
        "improves": "falls" if all(tuning.lower_is_better for tuning in tunings) else "rises",
        "curves": tuple(_curves(drawn, jobs, group.objective or "valid/loss", styles, name, figures)),
        "failures": tuple(failures[:MOST_FAILURES]),
        "more_failures": max(0, len(failures) - MOST_FAILURES),
        "gallery": read_gallery(drawn, jobs),
        "protocol": tuple(protocol(group)),
        "environment": tuple(_environment(jobs)),
        "datasets": tuple(sorted(_datasets(jobs), key=lambda info: SPLITS.find(info["split"]))),
    }


def _jobs_of(group: Group, jobs: Sequence[Job]) -> list[Job]:
    """Those that the group's rows are made of."""
    locations = {location for row in group.rows for location in row.locations}
    studies = {row.study for row in group.rows if row.study}
    return [job for job in jobs if job.location in locations or (job.result.study in studies and job.result.study)]


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
    if len(beaten) > MOST_DOMINATED:
        yield f"Drawn are the frontier and, of what is dominated, the {MOST_DOMINATED} best in the first metric."
    if pareto.missing:
        yield f"Not drawn, as one of the metrics was not measured: {some(pareto.missing)}."


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return joined(names if more <= 1 else [*names[:MOST_NAMES], f"{more} more"])


def _warnings(group: Group, tuned: Sequence[TunedRow]) -> Iterator[str]:
    yield from group.warnings
    yield from (warning for row in group.rows for warning in row.warnings)
    on_edge = [row.name for row in tuned if row.warnings]
    if on_edge:
        yield (
            f"The best settings of {joined(on_edge)} lie at an end of what was searched: better ones may lie beyond. "
            "What to try is told below, under how each method was tuned."
        )


def _tuned(tuning: Tuning, name: str, figures: Figures) -> TunedRow:
    return TunedRow(
        tuning.row,
        figures.show(f"{name}-learning-rates", draw_learning_rates(tuning)),
        tuple(tuning_sentences(tuning)),
        tuple(edge_warnings(tuning)),
        figures.show(f"{name}-settings", draw_parallel(tuning)),
        figures.show(f"{name}-importance", draw_importance(parameter_importance(tuning), tuning.row)),
    )


def _searches(tunings: Sequence[Tuning], styles: Styles, name: str, figures: Figures) -> Iterator[str]:
    for by_tokens, what in ((False, "trials"), (True, "tokens")):
        if drawn := draw_best_so_far(tunings, styles, by_tokens=by_tokens):
            yield figures.show(f"{name}-best-by-{what}", drawn)


def _curves(
    rows: Sequence[Row],
    jobs: Sequence[Job],
    objective: str,
    styles: Styles,
    name: str,
    figures: Figures,
) -> Iterator[str]:
    """Of each row, the first job that was scored."""
    by_location = {job.location: job for job in jobs}
    found = [read_curve(row, by_location[row.locations[0]], objective) for row in rows if row.locations]
    curves = [curve for curve in found if curve]
    for validation, what in ((False, "training"), (True, "validation")):
        if drawn := draw_curves(curves, styles, validation=validation, objective=objective):
            yield figures.show(f"{name}-{what}-loss", drawn)


def _environment(jobs: Sequence[Job]) -> Iterator[tuple[str, str]]:
    """Each thing known of the environment, with all the values it had."""
    found: dict[str, dict[str, None]] = {}
    for job in jobs:
        for key, value in job.result.environment.items():
            found.setdefault(key, {})[str(value)] = None
    yield from ((key, "; ".join(values)) for key, values in found.items())


def _datasets(jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
    seen = set()
    for job in jobs:
        for info in job.result.datasets:
            told = {key: info.get(key, "") for key in ("name", "split", "source", "rows", "digest")}
            if (line := tuple(map(str, told.values()))) not in seen:
                seen.add(line)
                yield told
