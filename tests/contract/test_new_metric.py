"""A new metric is one row of METRICS: every table, limit, store and recommendation takes it from there."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from peftsweep.job.display import result_table
from peftsweep.records.jobs import load_folder
from peftsweep.records.limits import parse_limits
from peftsweep.records.metrics import METRICS, Direction, Metric
from peftsweep.records.results import JobResult, Status, save_result
from peftsweep.report.analysis.comparison import Comparison
from peftsweep.report.analysis.groups import compare
from peftsweep.report.analysis.recommend import Wish, recommend
from peftsweep.report.page.write import write_page
from peftsweep.report.sources import load_jobs
from peftsweep.report.tables import print_comparison, to_csv, to_markdown
from peftsweep.tracking.restore import import_jobs

SCORE = Metric("test/foo_score", "a made-up score", "foolishness", "foo", Direction.HIGHER, is_score=True)
COST = Metric("upkeep/foo_bytes", "a made-up cost", "upkeep of foo", "upkeep", column="upkeep column")
VALUES = {"lora": (2.5, 7e9), "oft": (4.5, 9e9)}


@pytest.fixture(autouse=True)
def two_rows_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for metric in (SCORE, COST):
        monkeypatch.setitem(METRICS, metric.key, metric)


def result(method: str) -> JobResult:
    score, cost = VALUES[method]
    metrics = {SCORE.key: score, COST.key: cost}
    return JobResult(Status.OK, method, "m", "t", 0, metrics=metrics, started_at=f"2026-01-01T00:00:0{len(method)}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for method in VALUES:
        (tmp_path / "jobs" / method).mkdir(parents=True)
        save_result(result(method), tmp_path / "jobs" / method)
    return tmp_path / "jobs"


@pytest.fixture
def comparison(folder: Path) -> Comparison:
    return compare(load_folder(folder))


def printed(renderable: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200).print(renderable)
    return stream.getvalue()


def test_a_jobs_table_shows_it_with_its_label() -> None:
    text = printed(result_table(result("lora")))
    assert f"test {SCORE.label}" in text
    assert COST.label in text
    assert "7.00 GB" in text


def test_the_reports_tables_show_it(comparison: Comparison) -> None:
    stream = io.StringIO()
    print_comparison(comparison, Console(file=stream, width=200))
    for text in (stream.getvalue(), to_markdown(comparison)):
        assert COST.column in text
        assert "9.00" in text
        assert "4.5" in text
    assert {SCORE.key, COST.key} <= set(to_csv(comparison).partition("\n")[0].split(","))


def test_the_page_shows_it_with_its_label(folder: Path, comparison: Comparison, tmp_path: Path) -> None:
    page = write_page(load_folder(folder), comparison, [None] * len(comparison.groups), tmp_path / "page").read_text()
    assert SCORE.label in page
    assert COST.label in page


def test_limits_and_recommendations_know_its_word(comparison: Comparison) -> None:
    assert [row.name for row in comparison.groups[0].rows] == ["oft", "lora"]
    (found,) = recommend(comparison, Wish(parse_limits(["foo<=3"])))
    assert (found.metric, found.chosen) == (SCORE.key, "lora")
    (found,) = recommend(comparison, Wish(parse_limits(["upkeep<=8GB"]), best_in="foo"))
    assert found.chosen == "lora"


def test_mlflow_holds_it_there_and_back(folder: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    import_jobs([folder], uri=uri, experiment="peftsweep")
    assert {job.result.method: job.result.metrics for job in load_jobs(uri).jobs} == {
        method: {SCORE.key: score, COST.key: cost} for method, (score, cost) in VALUES.items()
    }
