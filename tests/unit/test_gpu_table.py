"""The table that ends `make test-gpu`, from reports as pytest makes them."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from gpu_table import Row, lines_of, rows_of, told_figure


def report(
    name: str,
    outcome: Literal["passed", "failed", "skipped"] = "passed",
    when: Literal["setup", "call", "teardown"] = "call",
    **options: Any,
) -> pytest.TestReport:
    nodeid = f"tests/gpu/{name}"
    return pytest.TestReport(nodeid, (nodeid, 0, name), {}, outcome, None, when, duration=0.5, **options)


def test_parts_of_a_test_make_one_row_with_its_figures() -> None:
    noted = [("planned_bytes", 2**31), ("ratio", 1.01)]
    parts = [
        report("test_a.py::test_it[x]", when="setup"),
        report("test_a.py::test_it[x]", user_properties=noted),
        report("test_a.py::test_it[x]", when="teardown", user_properties=noted),
    ]
    [row] = rows_of(parts)
    assert (row.file, row.name, row.result, row.seconds) == ("test_a.py", "test_it[x]", "passed", 1.5)
    assert row.told == "planned 2.000 GiB, ratio 1.01"


@pytest.mark.parametrize("part", ["setup", "call", "teardown"])
def test_a_test_fails_in_whatever_part_it_fails(part: Literal["setup", "call", "teardown"]) -> None:
    parts = [report("test_a.py::test_it", "failed" if when == part else "passed", when) for when in ("setup", "call")]
    parts.append(report("test_a.py::test_it", "failed" if part == "teardown" else "passed", "teardown"))
    assert [row.result for row in rows_of(parts)] == ["FAILED"]


def test_a_skipped_test_says_why() -> None:
    [row] = rows_of([report("test_a.py::test_it", "skipped")])
    skipped = report("test_a.py::test_it", "skipped")
    skipped.longrepr = ("conftest.py", 3, "Skipped: needs two cards, there is 1")
    [told] = rows_of([skipped])
    assert (row.result, row.told) == ("skipped", "")
    assert told.told == "needs two cards, there is 1"


def test_rows_stand_under_their_file_however_processes_mix_their_reports() -> None:
    names = ["test_b.py::test_1", "test_a.py::test_2", "test_b.py::test_3"]
    assert [row.name for row in rows_of(map(report, names))] == ["test_1", "test_3", "test_2"]


def test_the_table_counts_results_and_adds_seconds_by_file() -> None:
    rows = [
        Row("test_a.py", "test_1", "passed", 1.25, {"loss": 0.12345678}),
        Row("test_a.py", "test_2", "FAILED", 10.0),
        Row("test_b.py", "test_3", "skipped", 0.0, reason="needs the package bitsandbytes"),
    ]
    assert list(lines_of(rows)) == [
        "test       result              seconds",
        "test_a.py  1 passed, 1 FAILED     11.2",
        "  test_1   passed                  1.2  loss 0.1235",
        "  test_2   FAILED                 10.0",
        "test_b.py  1 skipped               0.0",
        "  test_3   skipped                 0.0  needs the package bitsandbytes",
    ]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("left_bytes", 0, "left 0.0 MiB"),
        ("planned_bytes", 3 * 2**29, "planned 1.500 GiB"),
        ("first_s", 7.25, "first s 7.25"),
        ("rows", 12, "rows 12"),
        ("cause", "none", "cause none"),
    ],
)
def test_a_figure_is_told_by_what_it_is(name: str, value: object, told: str) -> None:
    assert told_figure(name, value) == told
