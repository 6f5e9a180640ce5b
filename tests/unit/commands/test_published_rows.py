"""Results of the reference benchmark, once imported, stand beside one's own in every report: once, marked, unranked."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from peftsweep.__main__ import main
from tests.benchmark_results import image_file, text_file
from tests.job_writer import write_job, write_sweep

MODEL = "llama-3.2-3b"


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One published text and one image result, and a sweep, a folder of single jobs and a job of another model."""
    monkeypatch.chdir(tmp_path)
    for folder, content in (("MetaMathQA", text_file()), ("image-gen", image_file())):
        results = tmp_path / "method_comparison" / folder / "results"
        results.mkdir(parents=True)
        (results / "lora--rank8.json").write_text(json.dumps(content))
    assert main(["import", "hf", "method_comparison"]) == 0
    write_sweep(tmp_path / "outputs/sweeps/monday", {"lora": {1: [1, 0]}, "oft": {1: [1, 1]}}, model=MODEL)
    write_job(tmp_path / "outputs/single/a", "miss", model=MODEL)
    write_job(tmp_path / "other/a", "miss")


def rows_of(*words: str) -> list[dict[str, str]]:
    assert main(["report", *words, "folder=written", "log=false"]) == 0
    with Path("written/table.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("words", [[], ["sweep=monday"], ["runs=outputs/single"]], ids=" ".join)
@pytest.mark.usefixtures("imported")
def test_a_published_row_of_the_same_task_and_model_needs_no_further_argument(words: list[str]) -> None:
    rows = rows_of(*words)
    published = [row for row in rows if row["origin"] == "reference"]
    assert [(row["task"], row["model"], row["score"]) for row in published] == [("metamath", MODEL, "0.5")]
    assert published[0]["place"] == ""
    assert {row["group"] for row in rows} == {published[0]["group"]}


@pytest.mark.usefixtures("imported")
def test_it_is_shown_once_beside_each_group_where_the_whole_outputs_are_reported() -> None:
    text = [row for row in rows_of("runs=outputs") if row["task"] == "metamath"]
    published = [row["group"] for row in text if row["origin"] == "reference"]
    assert sorted(published) == sorted({row["group"] for row in text})


@pytest.mark.usefixtures("imported")
def test_it_is_marked_in_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    rows_of()
    assert "Rows marked as reference are published results, not run here" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("imported")
def test_jobs_of_another_model_stand_alone() -> None:
    assert [row["origin"] for row in rows_of("runs=other")] == ["own"]


@pytest.mark.usefixtures("imported")
def test_a_sweep_with_published_rows_still_belongs_to_its_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[set[str]] = []
    monkeypatch.setattr(
        "peftsweep.tracking.reports.log_report", lambda folder, studies, uri: logged.append(set(studies))
    )
    assert main(["report", "sweep=monday"]) == 0
    assert logged == [{"monday/lora", "monday/oft"}]
