"""The table that ends `make test-gpu`: a row for each test, with what it noted, under a row for its file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest

GIB, MIB = 2**30, 2**20
PASSED, SKIPPED, FAILED = "passed", "skipped", "FAILED"
BY_WEIGHT = (PASSED, SKIPPED, FAILED)  # of a test's parts the last of these counts


@dataclass
class Row:
    """One test: where it stands, how it ended, its seconds with what was set up for it, and the figures it noted."""

    file: str
    name: str
    result: str = PASSED
    seconds: float = 0.0
    figures: dict[str, object] = field(default_factory=dict)
    reason: str = ""  # why it was skipped

    @property
    def told(self) -> str:
        return self.reason or ", ".join(told_figure(name, value) for name, value in self.figures.items())


def rows_of(reports: Iterable[pytest.TestReport]) -> list[Row]:
    """A row for each test, file by file; a test's parts (setup, call, teardown) come as reports of their own."""
    rows: dict[str, Row] = {}
    for report in reports:
        path, _, name = report.nodeid.partition("::")
        row = rows.setdefault(report.nodeid, Row(path.rpartition("/")[2], name))
        result = {"passed": PASSED, "skipped": SKIPPED}.get(report.outcome, FAILED)
        row.result = max(row.result, result, key=BY_WEIGHT.index)
        row.seconds += report.duration
        row.figures |= dict(report.user_properties)
        if report.skipped and isinstance(report.longrepr, tuple):  # file, line, reason
            row.reason = str(report.longrepr[2]).removeprefix("Skipped: ")
    files = list(dict.fromkeys(row.file for row in rows.values()))
    return sorted(rows.values(), key=lambda row: files.index(row.file))


def lines_of(rows: Iterable[Row]) -> Iterator[str]:
    """The table as text: name, result, seconds, figures."""
    by_file: dict[str, list[Row]] = {}
    for row in rows:
        by_file.setdefault(row.file, []).append(row)
    cells = [("test", "result", "seconds", "")]
    for file, members in by_file.items():
        cells.append((file, _counted(members), f"{sum(row.seconds for row in members):.1f}", ""))
        cells += [(f"  {row.name}", row.result, f"{row.seconds:.1f}", row.told) for row in members]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    for name, result, seconds, told in cells:
        yield f"{name:<{widths[0]}}  {result:<{widths[1]}}  {seconds:>{widths[2]}}  {told}".rstrip()


def _counted(rows: Iterable[Row]) -> str:
    results = [row.result for row in rows]
    return ", ".join(f"{results.count(result)} {result}" for result in BY_WEIGHT if result in results)


def told_figure(name: str, value: object) -> str:
    """`planned_bytes` is told in GiB or MiB; the unit of other figures is the end of their name."""
    words = name.replace("_", " ")
    if name.endswith("_bytes") and isinstance(value, int | float):
        size = f"{value / GIB:.3f} GiB" if abs(value) >= GIB else f"{value / MIB:.1f} MiB"
        return f"{words.removesuffix(' bytes')} {size}"
    return f"{words} {value:.4g}" if isinstance(value, float) else f"{words} {value}"
