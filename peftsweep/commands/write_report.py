"""`peftsweep report`: the table on the console, and everything a reader may want of it in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftsweep.commands.words import SOURCE_WORDS, build_parser, parse_switch, parse_words
from peftsweep.errors import DataError
from peftsweep.records.metrics import candidates, metric_words

if TYPE_CHECKING:
    from peftsweep.records.jobs import Loaded
    from peftsweep.report.analysis.comparison import Comparison, Group
    from peftsweep.report.analysis.frontier import Pareto

KEYS = ("sweep", "runs", "x", "y", "z", "folder", "log")
REPORTS_FOLDER = Path("outputs/reports")
DESCRIPTION = """Compare the methods of a sweep, of a folder of jobs or of an MLflow store, and say how sure that is."""
DETAILS = f"""words:
{SOURCE_WORDS}
  x=memory y=accuracy  metrics of the Pareto frontier, by short name or key (z= for a third)
  folder=<folder>      where to write (default: outputs/reports/<name>)
  log=false            leave MLflow alone (default: a sweep's report is logged to the runs of its studies)
short names: {", ".join(metric_words())}"""


def run(arguments: Sequence[str]) -> int:
    """Print the comparison, write it down, and log it to the runs of its studies.

    Raises DataError, ConfigError, TrackingError: see `load_jobs`, `find_source`.
    """
    parser = build_parser("report", DESCRIPTION, DETAILS)
    parser.add_argument("words", nargs="*", metavar="key=value")
    words = parse_words("report", parser.parse_args(arguments).words, KEYS)
    is_logged = parse_switch(words, "log", default=True)
    axes = [words.get("x", "memory"), words.get("y", "score"), *([words["z"]] if "z" in words else [])]
    for axis in axes:
        candidates(axis)  # a typo in a metric's name is told before anything slow is read

    from peftsweep.report.analysis.groups import compare
    from peftsweep.report.page.write import write_page
    from peftsweep.report.sources import add_published, find_destination, find_source, load_jobs
    from peftsweep.report.tables import print_comparison
    from peftsweep.tracking.reports import log_report

    source, name = find_source(words.get("sweep"), words.get("runs"))
    own = load_jobs(source)
    loaded = add_published(own)
    comparison = compare(loaded)
    frontiers = [_frontier(group, loaded, axes, required="x" in words or "y" in words) for group in comparison.groups]
    print_comparison(comparison)
    folder = Path(words.get("folder") or REPORTS_FOLDER / re.sub(r"[^\w.-]+", "-", name))
    write_tables(comparison, folder)
    print(f"files   {write_page(loaded, comparison, frontiers, folder)}")
    destination = find_destination(own, source) if is_logged else None
    if destination and (done := log_report(folder, destination.studies, destination.uri)):
        print(f"mlflow  {done}")
    return 0


def _frontier(group: Group, loaded: Loaded, axes: Sequence[str], *, required: bool) -> Pareto | None:
    """None for a group that lacks a metric nobody asked for by name."""
    from peftsweep.report.analysis.frontier import find_frontier

    try:
        return find_frontier(group, loaded, axes)
    except DataError:
        if required:
            raise
        return None


def write_tables(comparison: Comparison, folder: Path) -> None:
    """table.csv, table.md and comparison.json, the last with everything that the report tells."""
    from peftsweep.report.tables import to_csv, to_markdown

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text(to_csv(comparison), encoding="utf-8")
    (folder / "table.md").write_text(to_markdown(comparison), encoding="utf-8")
    (folder / "comparison.json").write_text(json.dumps(comparison, default=_plain), encoding="utf-8")


def _plain(value: object) -> object:
    """What JSON has no word for; faster than `asdict`, which copies every number of 10,000 rows."""
    return vars(value) if is_dataclass(value) else str(value)
