"""Tracking across processes: several that open a fresh database, a server that is killed, MLflow's pages."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peftsweep.records.results import JobResult, Status, save_result
from peftsweep.tracking.restore import import_jobs
from peftsweep.tracking.store import open_store
from peftsweep.tracking.tracker import MlflowTracker, open_tracker

pytestmark = [pytest.mark.process, pytest.mark.slow]

EXPERIMENT = "peftsweep"
DEADLINE_SECONDS = 300.0  # of a machine that does other work too
OPEN_AND_LOG = """
import sys
from pathlib import Path
from peftsweep.tracking.tracker import open_tracker
tracker = open_tracker(uri=sys.argv[1], experiment="peftsweep", run_name="job", folder=Path("."), tags={})
tracker.strict = True
tracker.log_params({"lr": 0.1})
tracker.log_step(1, {"train/loss": 1.0})
tracker._flush()
"""


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A real `mlflow server` on a local database. kill: as a crash would."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        artifacts = ["--artifacts-destination", str(self.folder / "mlartifacts")]
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *address],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # its workers die with it
        )
        wait_until(lambda: answers(f"{self.url}/health"))

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def server(empty_database: Path, tmp_path: Path) -> Iterator[Server]:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def job_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text("lr: 0.1\n")
    (path / "history.jsonl").write_text(
        "".join(f'{{"step": {step}, "train/loss": {step}.5}}\n' for step in range(1, 5))
    )
    return path


def finish(tracker: MlflowTracker, folder: Path) -> None:
    result = JobResult(Status.OK, "lora", "pocket-llama", "metamath", seed=0, steps=4, mlflow_run_id=tracker.run_id)
    save_result(result, folder)
    tracker.log_folder(folder, adapter=False)
    tracker.close(result)


def test_processes_that_open_a_fresh_database_together_all_log(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new folder/mlflow.db"
    command = [sys.executable, "-c", OPEN_AND_LOG, uri]
    jobs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [job.communicate(timeout=DEADLINE_SECONDS)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], errors
    store = open_store(uri, EXPERIMENT)
    runs = store.client.search_runs([store.experiment_id])
    assert [run.data.metrics for run in runs] == [{"train/loss": 1.0}] * 3


def test_a_job_outlives_its_server_and_is_completed_by_import(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    folder = job_folder(server.folder / "job")
    tracker = open_tracker(uri=server.url, experiment=EXPERIMENT, run_name="job", folder=folder, tags={})
    assert isinstance(tracker, MlflowTracker)
    tracker.log_params({"lr": 0.1})
    tracker.log_step(1, {"train/loss": 1.5})
    server.kill()
    tracker.log_step(2, {"train/loss": 2.5})
    finish(tracker, folder)
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("peftsweep")]
    assert f"peftsweep import {folder}" in warning

    server.start()
    assert import_jobs([folder], uri=server.url, experiment=EXPERIMENT).completed == [folder]
    client = open_store(server.url, EXPERIMENT).client
    run = client.get_run(str(tracker.run_id))
    losses = [metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert run.info.status == "FINISHED"
    assert losses == [1.5, 2.5, 3.5, 4.5]
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"config.yaml", "result.json"}


def test_the_pages_open_and_ctrl_c_closes_them(empty_database: Path) -> None:
    port = free_port()
    code = f"from peftsweep.commands.open_ui import serve_ui; exit(serve_ui('sqlite:///{empty_database}', {port}))"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    pages = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, text=True, **streams)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"))
        assert pages.stdout is not None
        told = [pages.stdout.readline() for _ in range(3)]  # all that is told: what starts, where it is, how it ends
        assert told[1].startswith(f"Open http://127.0.0.1:{port}/#/experiments/")
        os.killpg(pages.pid, signal.SIGINT)
        assert pages.wait(timeout=DEADLINE_SECONDS) == 0
        assert pages.stdout.read() == ""
        assert not answers(f"http://127.0.0.1:{port}/health")
    finally:
        if pages.poll() is None:
            os.killpg(pages.pid, signal.SIGKILL)
