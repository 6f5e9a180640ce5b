"""`peftsweep report`: the table on the console, and everything a reader may want of it in a folder."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftsweep.errors import DataError

if TYPE_CHECKING:
    from peftsweep.records.jobs import Loaded
    from peftsweep.report.analysis.comparison import Comparison, Group
    from peftsweep.report.analysis.frontier import Pareto

KEYS = ("sweep", "runs", "x", "y", "z", "folder", "log")
REPORTS_FOLDER = Path("outputs/reports")
DESCRIPTION = """Compare the methods of a sweep, of a folder of jobs or of an MLflow store, and say how sure that is."""
DETAILS = """words:
  sweep=<name>         a sweep under outputs/sweeps (default: the last one)
  runs=<folder|uri>    any folder of jobs, or an MLflow store such as sqlite:///outputs/mlflow.db
  x=memory y=accuracy  metrics of the Pareto frontier, by short name or key (z= for a third)
  folder=<folder>      where to write (default: outputs/reports/<name>)
  log=false            leave MLflow alone (default: a sweep's report is logged to the runs of its studies)
short names: accuracy, score, similarity, loss, memory, time, throughput, forgetting, drift, params, size, energy"""


# What writes further files of a report beside the tables: (loaded jobs, comparison, frontiers, folder) -> main file
Page = Callable[["Loaded", "Comparison", "Sequence[Pareto | None]", Path], Path]
# What logs a report to MLflow: (its folder, studies by name with their tags, tracking URI) -> what was done, for people
Log = Callable[[Path, Mapping[str, Mapping[str, str]], str | None], str | None]


def run(arguments: Sequence[str], page: Page | None = None, log: Log | None = None) -> int:
    """Print the comparison and write it down; answers the exit code.

    page: writes the page, by default `report.page.write.write_page`. log: `tracking.log_report`; None
    logs nothing. Raises DataError, ConfigError, TrackingError: see `load_jobs`, `find_source`.
    """
    typed = _typed_words(arguments)

    from peftsweep.report.analysis.groups import compare
    from peftsweep.report.request import find_source, parse_switch, parse_words
    from peftsweep.report.sources import load_jobs
    from peftsweep.report.tables import print_comparison

    words = parse_words(typed, KEYS)
    log = log if parse_switch(words, "log") else None
    source, name = find_source(words.get("sweep"), words.get("runs"))
    axes = [words.get("x", "memory"), words.get("y", "score"), *([words["z"]] if "z" in words else [])]
    _check_axes(axes)
    loaded = load_jobs(source)
    comparison = compare(loaded)
    frontiers = [_frontier(group, loaded, axes, required="x" in words or "y" in words) for group in comparison.groups]
    print_comparison(comparison)
    folder = Path(words.get("folder") or REPORTS_FOLDER / re.sub(r"[^\w.-]+", "-", name))
    write_tables(comparison, folder)
    print(f"files   {(page or _write_page)(loaded, comparison, frontiers, folder)}")
    if log is not None:
        _log(log, loaded, source, folder)
    return 0


def _typed_words(arguments: Sequence[str]) -> list[str]:
    """Answers `--help` before anything slow is imported."""
    parser = argparse.ArgumentParser(
        "peftsweep report",
        description=DESCRIPTION,
        epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="key=value")
    found: list[str] = parser.parse_args(arguments).words
    return found


def _log(log: Log, loaded: Loaded, source: str, folder: Path) -> None:
    from peftsweep.report.destination import find_destination

    found = find_destination(loaded, source)
    done = found and log(folder, found.studies, found.uri)
    if done:
        print(f"mlflow  {done}")


def _write_page(loaded: Loaded, comparison: Comparison, frontiers: Sequence[Pareto | None], folder: Path) -> Path:
    from peftsweep.report.page.write import write_page

    return write_page(loaded, comparison, frontiers, folder)


def _check_axes(axes: Sequence[str]) -> None:
    """Before anything slow is read: a typo in a metric's name."""
    from peftsweep.records.metrics import candidates

    for word in axes:
        candidates(word)


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
