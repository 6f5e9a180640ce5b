"""Jobs from an MLflow store: the same numbers as from the folders they were logged from."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from job_writer import write_job, write_sweep
from mlflow import MlflowClient

from peftsweep.errors import DataError, TrackingError
from peftsweep.records.jobs import Loaded
from peftsweep.records.mlflow_format import read_tables
from peftsweep.records.results import Status, load_result, save_result
from peftsweep.report.analysis.comparison import Comparison, Row
from peftsweep.report.analysis.entries import group_key
from peftsweep.report.analysis.groups import compare
from peftsweep.report.sources import load_jobs
from peftsweep.tracking import reading as store_module
from peftsweep.tracking import store
from peftsweep.tracking.restore import import_jobs

# What MLflow keeps as text, of every kind.
CONFIG = {
    "model": {"dtype": "float32", "revision": None, "path": "a b/[c]"},
    "task": {"files": ["a.jsonl", "b.jsonl"], "digits": "1,200", "shuffle": True, "options": {}},
    "tracking": {"params": None},
}
KNOWN: dict[str, Any] = {"config": CONFIG, "hparams": {"betas": [0.9, 0.999], "max_grad_norm": "inf"}}
CONSTRAINT = "memory<=13GB"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep, single jobs of two versions of the task, and a job that failed."""
    folder = tmp_path_factory.mktemp("jobs")
    studies = {"lora": {1: [1, 0, 1, 1], 2: [1, 0, 0, 1]}, "oft": {1: [0, 0, 1, 1], 2: [0, 0, 0, 1]}}
    sweep = write_sweep(folder / "monday", studies, default=[0, 0, 0, 1], **KNOWN)
    plan = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").write_text(json.dumps(plan | {"settings": {"constraint": CONSTRAINT}}))
    write_job(folder / "single", seed=3, **KNOWN)
    write_job(folder / "newer", seed=3, task_version=2, test_items="others", model_revision="r2", **KNOWN)
    write_job(folder / "failed", items=None, status=Status.OOM, cause="too big", lr=0.7, **KNOWN)
    for number, path in enumerate(sorted(folder.rglob("result.json"))):  # each began at a time of its own
        save_result(replace(load_result(path), started_at=f"2026-01-01T00:00:{number:02}+00:00"), path.parent)
    return folder


@pytest.fixture(scope="module")
def uri(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    import_jobs([folder], uri=uri, experiment="peftsweep")
    client = MlflowClient(uri)
    for run in client.search_runs(["1"], "tags.`peftsweep.stage` = 'study'"):
        found = {"best.hparams.lr": "0.001", "objective": "valid/loss", "constraint": CONSTRAINT}
        for key, value in found.items():  # as a sweep that ends does
            client.set_tag(run.info.run_id, f"peftsweep.{key}", value)
    return uri


@pytest.fixture
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose files can't be reached."""
    monkeypatch.setattr(store_module, "local_folder", lambda artifact_uri: None)
    monkeypatch.setattr(store_module, "_fetch", lambda uri, run_id, name: None)


def numbers(comparison: Comparison) -> list[Row]:
    """All rows without where their jobs are."""
    return [replace(row, locations=()) for group in comparison.groups for row in group.rows]


def test_a_store_tells_the_same_numbers_as_the_folders(folder: Path, uri: str) -> None:
    from_folders, from_store = compare(load_jobs(folder)), compare(load_jobs(uri))
    assert numbers(from_store) == numbers(from_folders)
    assert [group.pairs for group in from_store.groups] == [group.pairs for group in from_folders.groups]
    assert [group.warnings for group in from_store.groups] == [group.warnings for group in from_folders.groups]


def test_the_file_of_a_store_is_enough(uri: str) -> None:
    assert len(load_jobs(uri.removeprefix("sqlite:///")).jobs) == len(load_jobs(uri).jobs) == 15


def test_runs_are_read_in_pages(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_jobs(uri)
    monkeypatch.setattr(store, "PAGE_RUNS", 3)
    assert {job.location for job in load_jobs(uri).jobs} == {job.location for job in whole.jobs}


def told(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """By job: all that decides where it stands, and beside what."""
    words = ("status", "method", "model", "task", "seed", "stage", "study", "cause", "metrics", "environment")
    words += ("task_version", "test_items", "model_revision", "started_at")
    return {
        job.result.started_at: {word: getattr(job.result, word) for word in words}
        | {"settings": job.settings, "key": group_key(job)}
        for job in loaded.jobs
    }


@pytest.mark.usefixtures("without_files")
def test_tables_alone_group_and_rank_as_the_folders_do(folder: Path, uri: str) -> None:
    from_folders, from_store = load_jobs(folder), load_jobs(uri)
    assert told(from_store) == told(from_folders)
    for name, study in from_folders.studies.items():
        found = from_store.studies[name]
        assert (found.objective, found.constraint) == (study.objective, study.constraint) == ("valid/loss", CONSTRAINT)
    one, other = compare(from_folders), compare(from_store)
    assert [group.key for group in other.groups] == [group.key for group in one.groups]
    assert len({group.key.task_version for group in one.groups}) == 2
    ranks = [[(row.name, row.place, row.objective, row.best) for row in group.rows] for group in other.groups]
    assert ranks == [[(row.name, row.place, row.objective, row.best) for row in group.rows] for group in one.groups]


@pytest.mark.usefixtures("without_files")
def test_tables_alone_tell_scores_with_their_intervals(folder: Path, uri: str) -> None:
    rows = {row.study: row for group in compare(load_jobs(uri)).groups for row in group.rows if row.study}
    for group in compare(load_jobs(folder)).groups:
        for row in filter(lambda row: row.study, group.rows):
            found = rows[row.study]
            assert found.estimates == row.estimates
            assert (found.best, found.trials, found.seeds) == (row.best, row.trials, row.seeds)
            assert found.score == row.score
            assert found.score is not None
            assert found.score.low is not None


@pytest.mark.usefixtures("without_files")
def test_settings_that_were_not_logged_as_parameters_keep_jobs_apart(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for rows in (4, 16):
        few = {"tracking": {"params": ["hparams.lr"]}}
        job = tmp_path / f"batch-{rows}"
        write_job(job, seed=3, config=few, hparams={"batch_size": rows, "gradient_accumulation": 1})
        save_result(replace(load_result(job), started_at=f"2026-01-01T00:00:{rows:02}+00:00"), job)
    import_jobs([tmp_path], uri=uri, experiment="peftsweep")
    assert {group.key.batch_rows for group in compare(load_jobs(uri)).groups} == {4, 16}


def test_an_older_run_is_read_from_its_result_and_else_from_tables(folder: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    import_jobs([folder / "single"], uri=uri, experiment="peftsweep")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("DELETE FROM tags WHERE key LIKE 'peftsweep.record.%' OR key LIKE 'peftsweep.items.%'")
    whole, (job,) = load_result(folder / "single"), load_jobs(uri).jobs
    assert job.result.intervals == whole.intervals
    assert len(job.item_scores) == 4
    shutil.rmtree(tmp_path / "mlartifacts")
    (job,) = load_jobs(uri).jobs
    assert job.result.metrics == whole.metrics
    assert job.settings["hparams.lr"] == whole.config["hparams"]["lr"]
    assert job.item_scores == []


def test_files_of_a_far_store_are_fetched_once(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "local_folder", lambda artifact_uri: None)
    store_module._fetch.cache_clear()
    job = next(job for job in load_jobs(uri).jobs if job.name == "best-seed-1")
    assert len(job.item_scores) == 4
    assert job.file("predictions.jsonl") == job.file("predictions.jsonl")
    assert job.file("no-such-file") is None


def test_a_database_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must exist"):
        load_jobs(f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database")
    with pytest.raises(TrackingError, match="must be readable"):
        load_jobs(tmp_path / "mlflow.db")


def test_runs_of_others_are_left_alone(uri: str) -> None:
    client = MlflowClient(uri)
    client.create_run(client.create_experiment("others"), run_name="not ours")
    assert len(load_jobs(uri).jobs) == 15


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.001", 0.001),
        ("32", 32),
        ("None", None),
        ("True", True),
        ("a b", "a b"),
        ("['a', None]", ["a", None]),
        ("[0.9, 0.999]", [0.9, 0.999]),
        ("[half", "[half"),
        ("inf", "inf"),
        ("1,200", "1,200"),
    ],
)
def test_settings_that_mlflow_keeps_as_text_are_values_again(text: str, value: object) -> None:
    tags = {f"peftsweep.{word}": "x" for word in ("method", "model", "task")}
    tags |= {"peftsweep.status": "ok", "peftsweep.stage": "single"}
    assert read_tables(tags, {"a.b": text}, {}, [], None).config == {"a": {"b": value}}
