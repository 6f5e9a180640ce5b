"""The tables on the console: whole at every width."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from job_writer import write_sweep
from rich.console import Console

from peftsweep.report.analysis.groups import compare
from peftsweep.report.sources import load_jobs
from peftsweep.report.tables import print_comparison, readable

METHODS = {"lora": {1: [1, 0, 1, 1], 2: [1, 0, 0, 1]}, "adaption-prompt": {1: [1, 1, 1, 1], 2: [1, 1, 1, 0]}}


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_column_is_lost_or_cut_however_narrow_the_terminal_is(tmp_path: Path, width: int) -> None:
    comparison = compare(load_jobs(write_sweep(tmp_path / "monday", METHODS)))
    stream = io.StringIO()
    print_comparison(comparison, Console(file=stream, width=width, force_terminal=True, color_system=None))
    printed = stream.getvalue()
    titles, rows = readable(comparison.groups[0])
    for word in {word for text in (*titles, *(cell for row in rows for cell in row)) for word in text.split(", ")}:
        assert word in printed
    tables = printed.split("place")[1:]
    assert all("lora" in table and "adaption-prompt" in table for table in tables)
    assert (len(tables) == 1) is (width == 200)
