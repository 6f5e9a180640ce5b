"""The pictures of one study for MLflow: the same that a report's page shows of it."""

from __future__ import annotations

from pathlib import Path

from peftsweep.report.analysis.tuning import Tuning
from peftsweep.report.analysis.tuning_words import parameter_importance
from peftsweep.report.figures.canvas import series_style
from peftsweep.report.figures.png import save_png
from peftsweep.report.figures.settings import draw_importance, draw_parallel
from peftsweep.report.figures.tuning import draw_best_so_far, draw_learning_rates


def draw_study(tuning: Tuning, folder: Path) -> list[Path]:
    """Write what can be drawn of a study as PNG files; answers their paths."""
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
