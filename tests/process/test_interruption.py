"""A job that is stopped from outside: its record is complete, and resumed it ends as if nothing had happened."""

import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.job.run import run_job

pytestmark = pytest.mark.process

STEPS = 150
NOT_COMPARED = ("time/", "memory/", "train/tokens_per_second", "energy/")


def run_status(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "outputs/mlflow.db") as database:
        return [status for (status,) in database.execute("select status from runs")]


@pytest.fixture(scope="module")
def settings(tiny_job):
    return [*tiny_job, f"hparams.max_steps={STEPS}", "hparams.checkpoint_every=2"]


@pytest.fixture(scope="module")
def uninterrupted(settings, tmp_path_factory, command_line):
    """In the process of the tests, which has its libraries loaded."""
    line = command_line(tmp_path_factory.mktemp("uninterrupted"))
    run_job(build_config(compose_config([*settings, f"cache={line.folder}/cache"])), line.folder / "job")
    return line


@pytest.fixture(scope="module")
def interrupted(settings, tmp_path_factory, command_line, empty_database):
    """A job with an MLflow run, ended by SIGTERM; then resumed and killed; then resumed to its end. What was seen."""
    line = command_line(tmp_path_factory.mktemp("interrupted"))
    (line.folder / "outputs").mkdir()
    shutil.copy(empty_database, line.folder / "outputs/mlflow.db")
    tracked = ["tracking=mlflow", "tracking.system_metrics=false"]
    seen = {"exit": line.stop(signal.SIGTERM, *settings, *tracked, "hydra.run.dir=job", job="job", after_step=3)}
    seen["result"], seen["run"] = line.result("job"), run_status(line.folder)
    reached = line.history("job")[-1]["step"]
    seen["killed"] = line.stop(signal.SIGKILL, "resume=job", job="job", after_step=reached + 4)[0]
    seen["result after kill"] = (line.folder / "job/result.json").exists()
    line.run("resume=job")
    return line, seen


def test_sigterm_ends_a_job_as_interrupted(interrupted):
    _, seen = interrupted
    code, printed = seen["exit"]
    assert code == 130
    assert "interrupted by SIGTERM" in printed
    assert "Traceback" not in printed
    assert seen["result"]["status"] == "interrupted"
    assert seen["result"]["steps"] >= 3


def test_sigterm_closes_the_mlflow_run_as_killed(interrupted):
    _, seen = interrupted
    assert seen["run"] == ["KILLED"]


def test_a_killed_job_has_no_result(interrupted):
    _, seen = interrupted
    assert seen["killed"] == -signal.SIGKILL
    assert not seen["result after kill"]


def test_a_resumed_job_ends_with_the_same_metrics_bit_for_bit(interrupted, uninterrupted):
    line, _ = interrupted
    resumed, whole = line.result("job"), uninterrupted.result("job")
    assert resumed["status"] == "ok"
    assert resumed["steps"] == whole["steps"] == STEPS
    for name, value in whole["metrics"].items():
        if not name.startswith(NOT_COMPARED):
            assert resumed["metrics"][name] == value, name


@pytest.mark.parametrize("file", ["predictions.jsonl", "adapter/adapter_model.safetensors"])
def test_a_resumed_job_ends_with_the_same_files(interrupted, uninterrupted, file):
    line, _ = interrupted
    assert (line.folder / "job" / file).read_bytes() == (uninterrupted.folder / "job" / file).read_bytes()


def test_a_resumed_jobs_history_has_each_step_once_and_the_same_losses(interrupted, uninterrupted):
    def losses(line):
        return [(entry["step"], entry["train/loss"]) for entry in line.history("job") if "train/loss" in entry]

    assert losses(interrupted[0]) == losses(uninterrupted)


def test_a_resumed_job_continues_its_mlflow_run(interrupted):
    line, _ = interrupted
    assert run_status(line.folder) == ["FINISHED"]


def test_ctrl_c_ends_a_whole_grid(tmp_path, tiny_job, command_line):
    line = command_line(tmp_path)
    grid = ["-m", "seed=1,2", *tiny_job, "hparams.max_steps=1000000", "hydra.sweep.dir=.", "hydra.sweep.subdir=job"]
    code, printed = line.stop(signal.SIGINT, *grid, job="job", after_step=2)
    assert code == 130
    assert "interrupted by Ctrl-C" in printed
    assert "Traceback" not in printed
    assert (line.result("job")["status"], line.result("job")["seed"]) == ("interrupted", 1)
