"""The report of a sweep among the artifacts of its studies' runs. One store for all tests: making one takes seconds."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from job_writer import write_sweep

from peftsweep.tracking import reports as module
from peftsweep.tracking.reports import log_report
from peftsweep.tracking.store import Store, open_store
from peftsweep.tracking.study_runs import open_studies

LORA, OFT = ({"method": method, "model": "pocket-llama", "task": "metamath"} for method in ("lora", "oft"))
STUDIES = {"monday/lora": LORA, "monday/oft": OFT}
LOGGED = {"index.html", "table.csv", "table.md", "figures/scores.svg", "figures/scores.png"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(f"sqlite:///{tmp_path_factory.mktemp('store') / 'my mlflow.db'}", "peftsweep")


@pytest.fixture
def run_ids(store: Store, request: pytest.FixtureRequest) -> dict[str, str]:
    """Runs without a report."""
    found = open_studies(store.uri, "peftsweep", {**STUDIES, "tuesday/lora": LORA}).run_ids
    for run_id in found.values():
        shutil.rmtree(artifacts(store, run_id) / "report", ignore_errors=True)
    return found


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = tmp_path / "report of monday"
    (folder / "figures").mkdir(parents=True)
    for name in LOGGED - {"figures/scores.png"}:
        (folder / name).write_text(f"{name}: as measured")
    (folder / "figures/scores.png").write_bytes(b"\x89PNG")
    (folder / "comparison.json").write_text("{}")
    (folder / "README.md").write_text("somebody's own: any folder may be written to")
    return folder


def artifacts(store: Store, run_id: str) -> Path:
    return Path(store.client.get_run(run_id).info.artifact_uri.removeprefix("file://").replace("%20", " "))


def logged(store: Store, run_id: str) -> set[str]:
    """What MLflow itself says is there, below report/."""
    found = [item for at in ("report", "report/figures") for item in store.client.list_artifacts(run_id, at)]
    return {item.path.removeprefix("report/") for item in found if not item.is_dir}


def test_each_study_of_the_sweep_has_the_page_its_tables_and_its_figures(
    store: Store, run_ids: dict[str, str], report: Path
) -> None:
    assert log_report(report, STUDIES, store.uri) == "report/ in the runs of 2 studies"
    assert {name: logged(store, run_id) for name, run_id in run_ids.items()} == {
        "monday/lora": LOGGED,
        "monday/oft": LOGGED,
        "tuesday/lora": set(),
    }
    page = artifacts(store, run_ids["monday/oft"]) / "report/index.html"
    assert page.read_text() == "index.html: as measured"


def test_a_later_report_takes_the_place_of_an_earlier_one(store: Store, run_ids: dict[str, str], report: Path) -> None:
    log_report(report, STUDIES, store.uri)
    (report / "index.html").write_text("with more seeds")
    log_report(report, {"monday/lora": LORA}, store.uri)
    pages = [artifacts(store, run_ids[name]) / "report/index.html" for name in STUDIES]
    assert [page.read_text() for page in pages] == ["with more seeds", "index.html: as measured"]


@pytest.mark.usefixtures("run_ids")
def test_a_study_of_another_model_or_a_deleted_run_is_left_alone(store: Store, report: Path) -> None:
    assert log_report(report, {"monday/lora": {**LORA, "model": "other"}}, store.uri) is None
    assert log_report(report, {"monday": LORA}, store.uri) is None
    gone = open_studies(store.uri, "peftsweep", {"gone/lora": LORA}).run_ids["gone/lora"]
    store.client.delete_run(gone)
    assert log_report(report, {"gone/lora": LORA}, store.uri) is None


def test_a_secret_in_a_cause_does_not_leave(store: Store, run_ids: dict[str, str], report: Path) -> None:
    (report / "index.html").write_text("failed: https://me:sesame-open@host refused")
    log_report(report, STUDIES, store.uri)
    assert "sesame" not in (artifacts(store, run_ids["monday/lora"]) / "report/index.html").read_text()


def test_files_elsewhere_are_sent_once(
    store: Store, run_ids: dict[str, str], report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through MLflow's client, as to a server or a cloud."""
    monkeypatch.setattr(module, "local_folder", lambda artifact_uri: None)
    assert log_report(report, STUDIES, store.uri) == "report/ in the runs of 2 studies"
    assert logged(store, run_ids["monday/lora"]) == LOGGED
    assert log_report(report, STUDIES, store.uri) == "report/ in the runs of 2 studies, unchanged"
    (report / "table.md").write_text("with more seeds")
    assert log_report(report, STUDIES, store.uri) == "report/ in the runs of 2 studies"


def test_a_client_finds_the_runs_that_the_database_holds(store: Store, run_ids: dict[str, str]) -> None:
    found = {run.info.run_id for run in module.study_runs(store.client)}
    assert set(run_ids.values()) <= found
    assert {run.run_id for run in module._runs(store.uri)} == found


def test_no_store_is_made_and_none_is_missed(tmp_path: Path, report: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert log_report(report, STUDIES, f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}") is None
    assert not (tmp_path / "none").exists()
    assert caplog.text == ""


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("kind", ["server", "database", "file", "password"])
def test_a_store_that_does_not_answer_costs_one_warning(
    kind: str, tmp_path: Path, report: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text.db").write_text("no database")
    uri = {
        "server": f"http://127.0.0.1:{closed_port()}",
        "database": f"postgresql://me:sesame-open@127.0.0.1:{closed_port()}/runs",
        "file": f"sqlite:///{tmp_path / 'text.db'}",
        "password": "postgresql://me:<redacted>@127.0.0.1/runs",
    }[kind]
    assert log_report(report, STUDIES, uri) is None
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"The report is in {report}." in warning
    assert "sesame" not in warning


def test_a_database_of_others_is_told(tmp_path: Path, report: Path, caplog: pytest.LogCaptureFixture) -> None:
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE runs (name)")
    assert log_report(report, STUDIES, f"sqlite:///{tmp_path / 'other.db'}") is None
    assert "MLflow must take a report" in caplog.text


def test_the_command_logs_to_a_local_store_without_mlflow(
    store: Store, run_ids: dict[str, str], tmp_path: Path
) -> None:
    """Its import would take longer than the report."""
    sweep = write_sweep(tmp_path / "monday", {"lora": {1: [1, 0]}, "oft": {1: [1, 1]}})
    code = "import sys; from peftsweep.__main__ import main; main(sys.argv[1:]); "
    code += "print('imported:', *sorted({'mlflow', 'torch'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", f"runs={sweep}", f"folder={tmp_path / 'report'}"],
        env=os.environ | {"MLFLOW_TRACKING_URI": store.uri},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-2:] == ["mlflow  report/ in the runs of 2 studies", "imported:"]
    assert {"index.html", "table.csv", "table.md"} < logged(store, run_ids["monday/oft"])
