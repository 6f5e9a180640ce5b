"""Reading finished jobs from folders, and what becomes of those that can't be read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from job_writer import write_job, write_sweep

from peftsweep.errors import DataError
from peftsweep.records.jobs import OWN, REFERENCE
from peftsweep.report.analysis.groups import compare
from peftsweep.report.sources import load_jobs


def test_every_finished_job_below_a_folder_is_found(tmp_path: Path) -> None:
    write_job(tmp_path / "2026-01-01" / "10-00-00")
    write_sweep(tmp_path / "sweeps" / "monday", {"lora": {1: [1, 0]}})
    (tmp_path / "2026-01-01" / "unfinished").mkdir()
    loaded = load_jobs(tmp_path)
    assert len(loaded.jobs) == 5
    assert [study.objective for study in loaded.studies.values()] == ["valid/loss"]


def test_copies_that_mlflow_keeps_are_not_counted_twice(tmp_path: Path) -> None:
    write_job(tmp_path / "job")
    write_job(tmp_path / "mlartifacts" / "1" / "artifacts")
    assert len(load_jobs(tmp_path).jobs) == 1


def test_a_job_knows_its_items_its_history_and_its_settings(tmp_path: Path) -> None:
    folder = write_job(tmp_path / "job", items=[1, 0, 1], lr=0.003, seed=7)
    (folder / "history.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "tra')
    job = load_jobs(tmp_path).jobs[0]
    assert job.item_scores == [1, 0, 1]
    assert job.history() == [{"step": 1, "train/loss": 2.0}]
    assert job.settings["hparams.lr"] == 0.003
    assert "seed" not in job.settings


def test_published_results_are_told_from_ones_own(tmp_path: Path) -> None:
    write_job(tmp_path / "a")
    write_job(tmp_path / "b", config={"origin": "reference"})
    assert [job.origin for job in load_jobs(tmp_path).jobs] == [OWN, REFERENCE]


def test_no_runs_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one finished job"):
        load_jobs(tmp_path)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder must exist.*nowhere"):
        load_jobs(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"status": "ok", "met', "valid JSON"),
        ('{"schema_version": 99, "status": "ok"}', "Upgrade peftsweep"),
        ('{"schema_version": 1, "status": "ok"}', "must describe a job"),
        ("[]", "schema_version"),
        ('{"schema_version": null, "status": "ok"}', "must describe a job"),
        ('{"schema_version": "1", "status": "ok"}', "must describe a job"),
    ],
)
def test_a_result_that_cant_be_read_is_named_and_left_out(tmp_path: Path, content: str, reason: str) -> None:
    write_job(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_text(content)
    loaded = load_jobs(tmp_path)
    assert [job.name for job in loaded.jobs] == ["good"]
    assert len(loaded.unreadable) == 1
    assert str(tmp_path / "bad") in loaded.unreadable[0]
    assert reason in loaded.unreadable[0]


@pytest.mark.parametrize("field", ["metrics", "intervals"])
def test_a_result_with_a_field_of_another_kind_is_left_out_too(tmp_path: Path, field: str) -> None:
    write_job(tmp_path / "good")
    path = write_job(tmp_path / "bad") / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: None}))
    assert len(load_jobs(tmp_path).unreadable) == 1


def test_where_nothing_can_be_read_the_reasons_are_told(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(DataError, match="valid JSON"):
        load_jobs(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "0.5", True])
def test_what_is_no_number_counts_as_not_measured(tmp_path: Path, value: object) -> None:
    path = write_job(tmp_path / "job") / "result.json"
    content = json.loads(path.read_text())
    content["metrics"]["drift"] = value
    path.write_text(json.dumps(content))
    assert "drift" not in load_jobs(tmp_path).jobs[0].result.metrics


@pytest.mark.parametrize("content", ["{", '{"objective": "valid/los", "settings": {}, "studies": []}'])
def test_a_sweep_file_that_cant_be_read_costs_no_job(tmp_path: Path, content: str) -> None:
    write_sweep(tmp_path / "monday", {"lora": {1: [1, 0]}})
    (tmp_path / "monday" / "sweep.json").write_text(content)
    loaded = load_jobs(tmp_path)
    assert (len(loaded.jobs), len(loaded.unreadable)) == (4, 1)


def test_test_items_that_cant_be_read_are_named(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_job(tmp_path / str(seed), seed=seed)
    (tmp_path / "2" / "predictions.jsonl").write_text('{"correct": tr')
    with pytest.raises(DataError, match=r"predictions\.jsonl"):
        compare(load_jobs(tmp_path))
