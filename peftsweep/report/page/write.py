"""The page of a report: one file that needs no network, with the figures also in a folder beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from peftsweep.records.jobs import Loaded
from peftsweep.records.quantities import NO_BREAK_SPACE
from peftsweep.report.analysis.comparison import Comparison
from peftsweep.report.analysis.frontier import Pareto
from peftsweep.report.figures.canvas import COLORS, file_svg, save_png
from peftsweep.report.page.parts import Figures, build_part

PAGE_FILE, FIGURES_FOLDER = "index.html", "figures"
ASSETS = Path(__file__).with_name("assets")
MOST_GROUPS, MOST_GROUPS_DRAWN = 20, 4  # a store of thousands of jobs has many; all are in comparison.json
MOST_WARNINGS, MOST_FAILURES = 20, 200  # causes; all are in comparison.json


def write_page(loaded: Loaded, comparison: Comparison, frontiers: Sequence[Pareto | None], folder: Path) -> Path:
    """Write index.html, which holds everything, and figures/ as SVG and PNG; answers the page's path.

    frontiers: one for each group of the comparison, None where a metric of it was not measured.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    figures: Figures = {}
    parts = [
        build_part(f"group-{number}", group, pareto, loaded, figures, is_drawn=number <= MOST_GROUPS_DRAWN)
        for number, (group, pareto) in enumerate(zip(comparison.groups[:MOST_GROUPS], frontiers, strict=False), 1)
    ]
    # The figures on the page have the colours that they have in their files.
    colors = "".join(f"--{name}:{value};" for name, value in COLORS.items())
    loader = FileSystemLoader(ASSETS)
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters |= {"figure": Markup, "prose": _prose}
    text = templates.get_template("page.html.jinja").render(
        comparison=comparison,
        parts=parts,
        style=Markup(f":root{{{colors}}}\n" + (ASSETS / "page.css").read_text(encoding="utf-8")),
        script=Markup((ASSETS / "page.js").read_text(encoding="utf-8")),
        most_warnings=MOST_WARNINGS,
        most_failures=MOST_FAILURES,
    )
    (folder / FIGURES_FOLDER).mkdir(parents=True, exist_ok=True)
    for name, canvas in figures.items():
        (folder / FIGURES_FOLDER / f"{name}.svg").write_text(file_svg(canvas), encoding="utf-8")
        save_png(canvas, folder / FIGURES_FOLDER / f"{name}.png")
    path = folder / PAGE_FILE
    path.write_text(text, encoding="utf-8")
    return path


def _prose(text: str) -> str:
    """Apostrophes as they are set, and no line that ends within a comparison."""
    text = re.sub(r" (?=[<>=] )|(?<= [<>=]) ", NO_BREAK_SPACE, text)
    return re.sub(r"(?<=\w)'(?=\w|\s)", "\N{RIGHT SINGLE QUOTATION MARK}", text)
