"""Runs in a local store. Creating MLflow's tables takes seconds, so one empty database is made and copied."""

import http.server
import json
import logging
import math
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from peftsweep.commands.open_ui import serve_ui
from peftsweep.errors import DataError, TrackingError
from peftsweep.records.mlflow_format import params_of
from peftsweep.records.pictures import sample_name, write_pictures
from peftsweep.records.results import JobResult, Status, save_result
from peftsweep.tracking.restore import import_jobs
from peftsweep.tracking.store import Store, how_to_look, open_store, resolve_uri, views
from peftsweep.tracking.tracker import MlflowTracker, NoTracker, Tracker, default_run_name, known_pictures, open_tracker

EXPERIMENT = "peftsweep"
HISTORY = [
    {"step": step, "unix_seconds": 1.8e9 + step, "train/loss": 2.0 / step, "train/lr": 0.1} for step in range(1, 8)
]
DATASET = {"name": "gsm8k", "split": "train", "source": "openai/gsm8k", "digest": "0123abcd", "rows": 100}
CONFIG = {"hparams": {"lr": 0.001, "max_steps": 7}, "method": {"name": "lora", "peft": {}}}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{path}", "unused")
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished job, but for its result.json."""
    folder = tmp_path / "outputs" / "job 1"
    (folder / "adapter").mkdir(parents=True)
    (folder / ".hydra").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / ".hydra" / "overrides.yaml").write_text("- method=lora\n")
    (folder / "config.yaml").write_text("hparams:\n  lr: 0.001\n")
    (folder / "job.log").write_text("done\n")
    (folder / "predictions.jsonl").write_text('{"correct": true}\n')
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HISTORY))
    return folder


def finished_job(run_id: str | None, status: Status = Status.OK, **changes: Any) -> JobResult:
    result = JobResult(
        status=status,
        method="lora",
        model="pocket-llama",
        task="metamath",
        seed=3,
        metrics={"test/accuracy": 0.5, "train/loss": 2.0 / 7, "time/job_seconds": 60.0},
        intervals={"test/accuracy": (0.4, 0.6)},
        steps=7,
        datasets=[DATASET],
        config=CONFIG,
        environment={"commit": "abc123", "gpu": "none"},
        started_at="2026-08-01T10:00:00.123456+00:00",
        mlflow_run_id=run_id,
    )
    return replace(result, **changes)


def begin(uri: str, folder: Path, **options: Any) -> Tracker:
    return open_tracker(
        uri=uri, experiment=EXPERIMENT, run_name="a name", folder=folder, tags={"method": "lora"}, **options
    )


def run_job(tracker: Tracker, folder: Path, **changes: Any) -> JobResult:
    """What job.py does with a tracker, in its order."""
    tracker.log_params(CONFIG)
    tracker.log_dataset(**DATASET)
    for row in HISTORY:
        values = {key: value for key, value in row.items() if "/" in key}
        tracker.log_step(row["step"], values, row["unix_seconds"])
    result = finished_job(tracker.run_id, **changes)
    save_result(result, folder)
    tracker.log_folder(folder, adapter=True)
    tracker.close(result)
    return result


def only_run(uri: str) -> Any:
    store = open_store(uri, EXPERIMENT)
    (run,) = store.client.search_runs([store.experiment_id])
    return run


def content(uri: str) -> dict[str, Any]:
    """All that a store says about its only run, but for its id and the moments of the calls."""
    run, client = only_run(uri), open_store(uri, EXPERIMENT).client
    by_step = {
        key: sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics
    }
    artifacts = sorted(path.name for path in Path(run.info.artifact_uri.removeprefix("file://")).rglob("*"))
    return {
        "status": run.info.status,
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if key not in {"mlflow.runName", "peftsweep.job"}},
        "metrics": by_step,
        "inputs": [item.to_dictionary() for item in run.inputs.dataset_inputs],
        "artifacts": artifacts,
    }


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_run_holds_what_the_job_logged(uri: str, folder: Path) -> None:
    run_job(begin(uri, folder), folder)
    found = content(uri)
    assert found["status"] == "FINISHED"
    assert found["params"]["hparams.lr"] == "0.001"
    assert found["metrics"]["train/lr"] == [(step, 0.1) for step in range(1, 8)]
    assert found["metrics"]["test/accuracy"] == [(7, 0.5)]
    assert found["inputs"][0]["dataset"]["name"] == "gsm8k"
    assert {"config.yaml", "result.json", "job.log", "predictions.jsonl", "adapter_model.safetensors"} <= set(
        found["artifacts"]
    )


def test_tags_tell_jobs_apart(uri: str, folder: Path) -> None:
    run_job(begin(uri, folder), folder, task_version=2, test_items="feed", model_revision="beef")
    tags = content(uri)["tags"]
    words = ("method", "model", "task", "seed", "stage", "status", "environment.gpu", "interval95.test/accuracy")
    expected = ["lora", "pocket-llama", "metamath", "3", "single", "ok", "none", "0.4 to 0.6"]
    assert [tags[f"peftsweep.{word}"] for word in words] == expected
    compared = [tags[f"peftsweep.{word}"] for word in ("task_version", "test_items", "model_revision")]
    assert compared == ["2", "feed", "beef"]


def test_what_a_job_does_not_know_has_no_tag(uri: str, folder: Path) -> None:
    run_job(begin(uri, folder), folder)
    assert content(uri)["tags"].keys().isdisjoint({"peftsweep.test_items", "peftsweep.model_revision"})


@pytest.mark.parametrize(
    ("status", "run_status"),
    [("ok", "FINISHED"), ("pruned", "FINISHED"), ("oom", "FAILED"), ("failed", "FAILED"), ("interrupted", "KILLED")],
)
def test_every_status_ends_the_run(uri: str, folder: Path, status: str, run_status: str) -> None:
    begin(uri, folder).close(finished_job(None, Status(status), cause="because"))
    run = only_run(uri)
    assert (run.info.status, run.data.tags["peftsweep.status"], run.data.tags["peftsweep.cause"]) == (
        run_status,
        status,
        "because",
    )


def test_final_value_equal_to_the_last_step_is_logged_once(uri: str, folder: Path) -> None:
    run_job(begin(uri, folder), folder)
    assert len(content(uri)["metrics"]["train/loss"]) == len(HISTORY)


def test_missing_value_is_absent(uri: str, folder: Path) -> None:
    begin(uri, folder).close(finished_job(None, metrics={"drift": math.nan, "test/loss": 1.0}))
    assert set(only_run(uri).data.metrics) == {"test/loss"}


def test_parameters_are_cut_to_what_mlflow_takes(uri: str, folder: Path) -> None:
    begin(uri, folder).log_params({"task": {"template": "x" * 7000, "odd key+": 1}})
    assert only_run(uri).data.params == {"task.template": "x" * 6000, "task.odd key_": "1"}


def test_only_chosen_parameters_are_logged(uri: str, folder: Path) -> None:
    settings = {"hparams": {"lr": 0.1, "lr_scale": 1.0, "max_steps": 7}, "method": {"name": "lora", "capacity": 8}}
    begin(uri, folder).log_params(settings, only=["hparams.lr", "method", "unknown"])
    assert only_run(uri).data.params == {"hparams.lr": "0.1", "method.name": "lora", "method.capacity": "8"}


def test_chosen_parameters_come_in_the_order_of_their_keys() -> None:
    assert list(params_of({"a": 1, "b": {"c": 2, "d": 3}}, ["b.d", "a", "b.c"])) == ["b.d", "a", "b.c"]


def test_a_job_costs_few_calls(uri: str, folder: Path) -> None:
    tracker = begin(uri, folder)
    assert isinstance(tracker, MlflowTracker)
    calls = FailingClient(tracker._store.client, "none of them")
    tracker._store = replace(tracker._store, client=calls)  # type: ignore[arg-type]
    tracker.log_params(CONFIG)
    for split in ("train", "valid", "test"):
        tracker.log_dataset(**DATASET | {"split": split})
    for row in HISTORY:
        tracker.log_step(row["step"], {"train/loss": row["train/loss"]})
    tracker.close(finished_job(tracker.run_id))
    assert calls.calls == ["log_batch", "log_inputs", "log_batch", "set_terminated"]


def test_jobs_of_a_study_are_named_by_their_folders(folder: Path) -> None:
    assert default_run_name(finished_job(None), folder) == "lora pocket-llama metamath seed 3"
    assert default_run_name(finished_job(None, study="monday/lora"), folder) == "lora job 1"


def test_steps_reach_the_store_before_the_job_ends(uri: str, folder: Path) -> None:
    tracker = begin(uri, folder)
    for step in range(300):
        tracker.log_step(step, {"train/loss": 1.0, "train/lr": 0.1})
    assert only_run(uri).data.metrics


def test_a_resumed_job_continues_its_run(uri: str, folder: Path) -> None:
    first = begin(uri, folder)
    first.log_params({"hparams": {"lr": 0.1}})
    first.log_step(1, {"train/loss": 2.0})
    first.close(finished_job(first.run_id, Status.INTERRUPTED, metrics={}, steps=1))
    second = begin(uri, folder, run_id=first.run_id)
    second.log_params({"hparams": {"lr": 0.2, "more": 1}})
    second.log_step(1, {"train/loss": 2.0})
    second.log_step(2, {"train/loss": 1.0})
    second.close(finished_job(second.run_id, metrics={}, steps=2))
    found = content(uri)
    assert found["status"] == "FINISHED"
    assert found["params"] == {"hparams.lr": "0.1", "hparams.more": "1"}
    assert found["metrics"]["train/loss"] == [(1, 2.0), (2, 1.0)]


def test_a_resumed_job_that_ends_well_has_no_cause(uri: str, folder: Path) -> None:
    first = begin(uri, folder)
    first.close(finished_job(first.run_id, Status.INTERRUPTED, cause="Ctrl-C"))
    second = begin(uri, folder, run_id=first.run_id)
    second.close(finished_job(second.run_id))
    assert "peftsweep.cause" not in only_run(uri).data.tags


def test_an_unknown_run_id_is_an_error(uri: str, folder: Path) -> None:
    with pytest.raises(TrackingError, match="run must exist"):
        begin(uri, folder, run_id="0" * 32)


def test_no_planted_secret_reaches_the_store(
    uri: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "pl4nted-environment")
    (folder / "config.yaml").write_text("tracking:\n  password: pl4nted-config\n")
    (folder / ".hydra" / "overrides.yaml").write_text("- +model.token=pl4nted-override\n")
    (folder / "job.log").write_text("GET http://user:pl4nted-log@host\npl4nted-environment\n")
    tracker = begin(uri, folder)
    tracker.log_params({"model": {"token": "pl4nted-param"}, "uri": "http://user:pl4nted-uri@host"})
    tracker.set_tags({"note": "pl4nted-environment", "password": "pl4nted-tag"})
    tracker.log_dataset(**DATASET | {"source": "https://user:pl4nted-source@host/data"})
    run_job(tracker, folder, cause="token=pl4nted-cause", config={"api_key": "pl4nted-result"})
    stored = [tmp_path / "mlflow.db", *(path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file())]
    assert len(stored) > 5
    assert [path.name for path in stored if b"pl4nted" in path.read_bytes()] == []


def test_import_gives_what_live_logging_gives(uri: str, folder: Path, empty_database: Path, tmp_path: Path) -> None:
    run_job(begin(uri, folder), folder)
    (tmp_path / "other").mkdir()
    other = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'other' / 'mlflow.db')}"
    report = import_jobs([folder], uri=other, experiment=EXPERIMENT)
    assert report.logged == [folder]
    assert content(other) == content(uri)


PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def write_samples(folder: Path) -> None:
    for step in (50, 100):
        write_pictures({sample_name(step, "a toy"): PICTURE + step}, folder / "images/samples")
    write_pictures({"images/test/00-0": PICTURE, "contact_sheet": PICTURE}, folder)


def stored_pictures(uri: str) -> tuple[set[tuple[str, int]], set[str]]:
    """Key and step of the pictures in MLflow's image view, and the other picture files of the only run."""
    client, run_id = MlflowClient(uri), only_run(uri).info.run_id
    others = [info.path for folder in ("", "pictures/test") for info in client.list_artifacts(run_id, folder)]
    return known_pictures(client, run_id), {path for path in others if path.endswith(".png")}


def test_samples_stand_in_the_image_view_by_step_and_once(uri: str, folder: Path) -> None:
    tracker = begin(uri, folder)
    write_samples(folder)
    tracker.log_picture("a toy", PICTURE, 50)
    tracker.log_picture("a toy", PICTURE, 50)
    run_job(tracker, folder)
    assert stored_pictures(uri) == ({("a toy", 50), ("a toy", 100)}, {"contact_sheet.png", "pictures/test/00-0.png"})
    client, run_id = MlflowClient(uri), only_run(uri).info.run_id
    assert sum(info.path.endswith(".png") for info in client.list_artifacts(run_id, "images")) == 2


def test_samples_are_imported_with_their_steps(uri: str, folder: Path) -> None:
    write_samples(folder)
    save_result(finished_job(None), folder)
    import_jobs([folder], uri=uri, experiment=EXPERIMENT)
    assert stored_pictures(uri) == ({("a toy", 50), ("a toy", 100)}, {"contact_sheet.png", "pictures/test/00-0.png"})


def test_a_resumed_job_logs_no_sample_again(uri: str, folder: Path) -> None:
    first = begin(uri, folder)
    first.log_picture("a toy", PICTURE, 50)
    again = begin(uri, folder, run_id=first.run_id)
    again.log_picture("a toy", PICTURE, 50)
    client, run_id = MlflowClient(uri), only_run(uri).info.run_id
    assert sum(info.path.endswith(".png") for info in client.list_artifacts(run_id, "images")) == 1


def test_imported_run_has_the_times_of_the_job(uri: str, folder: Path) -> None:
    save_result(finished_job(None), folder)
    import_jobs([folder], uri=uri, experiment=EXPERIMENT)
    info = only_run(uri).info
    assert (info.start_time, info.end_time - info.start_time) == (1785578400123, 60_000)


def test_importing_twice_changes_nothing(uri: str, folder: Path) -> None:
    save_result(finished_job(None), folder)
    import_jobs([folder], uri=uri, experiment=EXPERIMENT)
    before = content(uri)
    report = import_jobs([folder], uri=uri, experiment=EXPERIMENT)
    assert (report.logged, report.completed, report.skipped) == ([], [], [folder])
    assert content(uri) == before


def test_import_leaves_a_job_that_was_logged_live_alone(uri: str, folder: Path) -> None:
    run_job(begin(uri, folder), folder)
    assert import_jobs([folder], uri=uri, experiment=EXPERIMENT).skipped == [folder]


def test_import_completes_a_run_that_was_cut_off(uri: str, folder: Path, tmp_path: Path, empty_database: Path) -> None:
    tracker = begin(uri, folder)
    for row in HISTORY[:3]:
        tracker.log_step(row["step"], {"train/loss": row["train/loss"]})
    assert isinstance(tracker, MlflowTracker)
    tracker._flush()
    save_result(finished_job(tracker.run_id), folder)
    report = import_jobs([folder], uri=uri, experiment=EXPERIMENT)
    assert report.completed == [folder]
    found = content(uri)
    assert found["status"] == "FINISHED"
    assert found["metrics"]["train/loss"] == [(row["step"], row["train/loss"]) for row in HISTORY]


def test_import_ends_a_run_that_was_left_running(uri: str, folder: Path) -> None:
    tracker = begin(uri, folder)
    break_client(tracker, "set_terminated")
    run_job(tracker, folder)
    assert only_run(uri).info.status == "RUNNING"
    assert import_jobs([folder], uri=uri, experiment=EXPERIMENT).completed == [folder]
    assert only_run(uri).info.status == "FINISHED"


def test_import_takes_a_copy_in_the_artifacts_for_no_job(uri: str, folder: Path, tmp_path: Path) -> None:
    run_job(begin(uri, folder), folder)
    assert import_jobs([tmp_path], uri=uri, experiment=EXPERIMENT).skipped == [folder]


def test_import_names_a_result_it_cannot_read_and_goes_on(uri: str, folder: Path) -> None:
    save_result(finished_job(None), folder)
    broken = folder.parent / "broken" / "result.json"
    broken.parent.mkdir()
    broken.write_text("{")
    report = import_jobs([folder.parent], uri=uri, experiment=EXPERIMENT)
    assert report.logged == [folder]
    (reason,) = report.unreadable
    assert str(broken) in reason
    assert str(report).startswith("1 jobs logged, 0 completed, 0 were there already\nnot read: ")


def test_import_survives_a_history_cut_in_the_middle_of_a_line(uri: str, folder: Path) -> None:
    save_result(finished_job(None, metrics={}), folder)
    path = folder / "history.jsonl"
    path.write_text(path.read_text()[:-20])
    import_jobs([folder], uri=uri, experiment=EXPERIMENT)
    assert len(content(uri)["metrics"]["train/loss"]) == len(HISTORY) - 1


def test_import_of_a_folder_without_jobs_is_an_error(uri: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="finished jobs"):
        import_jobs([tmp_path / "nothing"], uri=uri, experiment=EXPERIMENT)


def test_a_server_that_is_down_costs_one_warning_that_says_how_to_log_later(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = begin(f"http://user:planted@127.0.0.1:{closed_port()}", folder)
    result = run_job(tracker, folder)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert isinstance(tracker, NoTracker)
    assert result.mlflow_run_id is None
    assert "Connection refused" in warning
    assert f"peftsweep import '{folder}'" in warning
    assert "planted" not in warning


def test_a_server_that_never_answers_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert isinstance(begin(f"http://127.0.0.1:{server.getsockname()[1]}", folder), NoTracker)


@pytest.fixture
def forbidding_server() -> Iterator[str]:
    class Forbid(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401, "You are not authenticated")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Forbid) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_wrong_credentials_are_an_error_before_the_job(forbidding_server: str, folder: Path) -> None:
    with pytest.raises(TrackingError, match="401"):
        begin(forbidding_server, folder)


@pytest.mark.parametrize(
    "uri", ["htpp://host", "sqlite:///{folder}/config.yaml", "sqlite:///{folder}/config.yaml/x.db"]
)
def test_a_wrong_address_is_an_error_before_the_job(uri: str, folder: Path) -> None:
    with pytest.raises(TrackingError, match=r"tracking\.uri"):
        begin(uri.format(folder=folder), folder)


def test_a_database_server_that_is_down_does_not_stop_the_job(folder: Path) -> None:
    assert isinstance(begin(f"postgresql://user:pw@127.0.0.1:{closed_port()}/db", folder), NoTracker)


def test_a_deleted_experiment_is_an_error(uri: str, folder: Path) -> None:
    store = open_store(uri, EXPERIMENT)
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(TrackingError, match="must not be deleted"):
        begin(uri, folder)


class FailingClient:
    """Stands for a client whose server is gone from now on, for all calls or those named."""

    def __init__(self, client: Any, *names: str) -> None:
        self.client, self.names = client, names
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        if self.names and name not in self.names:
            return getattr(self.client, name)

        def fail(*args: Any, **kwargs: Any) -> None:
            raise ConnectionRefusedError(111, "Connection refused") if not self.names else ValueError("no space left")

        return fail


def break_client(tracker: Tracker, *names: str) -> FailingClient:
    assert isinstance(tracker, MlflowTracker)
    broken = FailingClient(tracker._store.client, *names)
    tracker._store = replace(tracker._store, client=broken)  # type: ignore[arg-type]
    return broken


def test_a_server_that_dies_halfway_costs_one_warning(uri: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = begin(uri, folder)
    broken = break_client(tracker)
    run_job(tracker, folder)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert broken.calls == ["log_batch", "log_batch"]  # each may wait; at first, and once more at the end
    assert import_jobs([folder], uri=uri, experiment=EXPERIMENT).completed == [folder]


def test_steps_are_not_sent_again_and_again_to_a_dead_server(uri: str, folder: Path) -> None:
    tracker = begin(uri, folder)
    broken = break_client(tracker)
    for step in range(3000):
        tracker.log_step(step, {"train/loss": 1.0})
    assert broken.calls == ["log_batch"]


def test_a_server_that_comes_back_gets_everything_at_the_end(uri: str, folder: Path) -> None:
    tracker = begin(uri, folder)
    broken = break_client(tracker)
    for step in range(600):
        tracker.log_step(step, {"train/loss": 1.0 + step})
    assert isinstance(tracker, MlflowTracker)
    tracker._store = replace(tracker._store, client=broken.client)
    tracker.close(finished_job(tracker.run_id, metrics={}))
    assert len(content(uri)["metrics"]["train/loss"]) == 600


def test_a_run_whose_artifacts_failed_is_closed_but_not_complete(uri: str, folder: Path) -> None:
    tracker = begin(uri, folder)
    break_client(tracker, "log_artifact")
    run_job(tracker, folder)
    run = only_run(uri)
    assert run.info.status == "FINISHED"
    assert "peftsweep.complete" not in run.data.tags
    assert import_jobs([folder], uri=uri, experiment=EXPERIMENT).completed == [folder]


def test_system_metrics_are_watched_until_the_job_ends(uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    tracker = begin(uri, folder, system_metrics=True)
    (watcher,) = [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]
    tracker.close(finished_job(tracker.run_id))
    assert not watcher.is_alive()


def test_importing_the_package_does_not_import_mlflow() -> None:
    code = "import sys; from peftsweep.tracking import reading, reports, restore, study_runs, tracker;"
    code += "from peftsweep.commands import open_ui;"
    code += "sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_environment_names_the_store_when_the_configuration_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert resolve_uri(None) == "http://tracking:5000"
    assert resolve_uri("http://other:5000") == "http://other:5000"


def test_the_default_store_is_a_file_under_outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/outputs/mlflow.db"


def test_artifacts_lie_beside_the_database_whatever_the_working_directory(uri: str, tmp_path: Path) -> None:
    store: Store = open_store(uri, EXPERIMENT)
    location = store.client.get_experiment(store.experiment_id).artifact_location
    assert location == (tmp_path / "mlartifacts").as_uri()


def test_the_pages_have_a_view_with_scores_costs_and_rates(uri: str) -> None:
    store = open_store(uri, EXPERIMENT)
    page = views(store.client, "http://127.0.0.1:5000")[EXPERIMENT]
    assert page == f"http://127.0.0.1:5000/#/experiments/{store.experiment_id}/runs?viewStateShareKey=peftsweep"
    tags = store.client.get_experiment(store.experiment_id).tags
    columns = json.loads(tags["mlflow.sharedViewState.peftsweep"])["selectedColumns"]
    assert columns[0] == "metrics.`test/accuracy`"
    assert {"metrics.`forgetting_nats`", "metrics.`memory/train_peak_reserved_bytes`", "params.`hparams.lr`"} < {
        *columns
    }
    assert not any("adapter/" in column for column in columns)  # by the alphabet they would hide the scores


def test_an_experiment_of_an_earlier_version_gets_the_view_and_keeps_what_a_user_set(uri: str) -> None:
    client = MlflowClient(uri)
    identifier = client.create_experiment("old", tags={"mlflow.experimentKind": "genai_development"})
    assert "old" not in views(client, "")
    open_store(uri, "old")
    assert client.get_experiment(identifier).tags["mlflow.experimentKind"] == "genai_development"
    assert f"/experiments/{identifier}/" in views(client, "")["old"]


def test_mlflows_pages_know_such_views() -> None:
    """Nothing that MLflow promises: its share button writes them."""
    scripts = (Path(mlflow.__file__).parent / "server/js/build/static/js").glob("main.*.js")
    text = "".join(script.read_text(encoding="utf-8") for script in scripts)
    for name in ('"viewStateShareKey"', '"mlflow.sharedViewState."', '"selectedColumns"', '+".`"+'):
        assert name in text


def test_a_local_store_is_looked_at_by_a_command(uri: str) -> None:
    assert how_to_look(uri, EXPERIMENT) == f"python -m peftsweep ui   (store: {uri})"


def test_a_server_that_is_away_is_named_at_least() -> None:
    address = f"http://127.0.0.1:{closed_port()}"
    assert how_to_look(address, EXPERIMENT) == address


def test_the_pages_need_a_store_to_show(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="must exist"):
        serve_ui(f"sqlite:///{tmp_path}/none.db", closed_port())


def test_the_pages_of_a_tracking_server_are_its_own() -> None:
    with pytest.raises(TrackingError, match="serves its own pages"):
        serve_ui("http://tracking:5000", closed_port())


def test_a_taken_port_is_an_error(uri: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(TrackingError, match="port must be free"):
        serve_ui(uri, taken.getsockname()[1])
