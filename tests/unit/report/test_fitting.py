"""Columns give way before digits do."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from job_writer import write_sweep
from rich.console import Console

from peftsweep.report.analysis.groups import compare
from peftsweep.report.fitting import TextColumn, print_table
from peftsweep.report.sources import load_jobs
from peftsweep.report.tables import print_comparison, readable

COLUMNS = [
    TextColumn("method", ["lora", "a-method-with-a-name-that-is-long-enough-to-fold"], is_name=True),
    TextColumn("accuracy, %", ["97.5", "1.0"], 3),
    TextColumn("95% interval", ["95.8 to 98.5", "0.0 to 5.0"], 2),
    TextColumn("time", ["1,234.5", "3.0"], 1),
    TextColumn("folder", ["outputs/2026-11-30/12-00-00-123456", "outputs/x"], 0, is_text=True),
]
METHODS = {"lora": {1: [1, 0, 1, 1], 2: [1, 0, 0, 1]}, "adaption-prompt": {1: [1, 1, 1, 1], 2: [1, 1, 1, 0]}}


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def text_of(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(("width", "left_out"), [(40, 3), (50, 2), (60, 1), (80, 1), (100, 1), (160, 0)])
def test_what_is_shown_is_whole_and_what_is_not_is_told(width: int, left_out: int) -> None:
    print_table(console := terminal(width), COLUMNS, "table.csv")
    table, _, note = text_of(console).partition("Too narrow for: ")
    assert max(map(len, table.splitlines())) <= width
    first_to_go = sorted(COLUMNS[1:], key=lambda column: column.importance)
    for column in first_to_go[left_out:]:
        assert all(cell in table for cell in column.cells)
    told = " ".join(note.split()).partition(". All is in table.csv.")[0]
    assert told == "; ".join(column.title for column in first_to_go[:left_out])


def test_a_pipe_has_room_for_all() -> None:
    console = Console(file=io.StringIO(), width=20)
    print_table(console, COLUMNS, "table.csv")
    assert "outputs/2026-11-30/12-00-00-123456" in text_of(console)
    assert "Too narrow" not in text_of(console)


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_report_shows_the_score_first_of_all_and_no_half_of_a_number(tmp_path: Path, width: int) -> None:
    comparison = compare(load_jobs(write_sweep(tmp_path / "monday", METHODS)))
    print_comparison(comparison, console := terminal(width))
    printed = text_of(console)
    titles, rows = readable(comparison.groups[0])
    assert max(map(len, printed.splitlines())) <= width
    told = " ".join(printed.partition("Too narrow for: ")[2].split()).partition(". All is in table.md")[0].split("; ")
    assert not {"method", "accuracy, %", "95% interval"} & {*told}
    shown = [number for number, title in enumerate(titles) if title not in told]
    assert len(shown) + len([title for title in told if title]) == len(titles)
    for cells in rows:
        assert all(line in printed for number in shown for line in cells[number].split("\n"))
