"""A job that is stopped from outside: its record is complete, and resumed it ends as if nothing had happened."""

import json
import shlex
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.job.run import run_job

pytestmark = pytest.mark.process
SLOW = pytest.mark.slow  # half a minute and more, some of it in what several share

DEADLINE_SECONDS = 300.0
STEPS = 150
NOT_COMPARED = ("time/", "memory/", "train/tokens_per_second", "energy/")


def run_status(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "outputs/mlflow.db") as database:
        return [status for (status,) in database.execute("select status from runs")]


@pytest.fixture(scope="module")
def settings(tiny_job):
    return [*tiny_job, f"hparams.max_steps={STEPS}"]


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


@SLOW
def test_sigterm_ends_a_job_as_interrupted(interrupted):
    _, seen = interrupted
    code, printed = seen["exit"]
    assert code == 130
    assert "interrupted by SIGTERM" in printed
    assert f"Kept as of step {seen['result']['steps']}. To go on: python -m peftsweep resume=job" in printed
    assert "Traceback" not in printed
    assert seen["result"]["status"] == "interrupted"
    assert seen["result"]["steps"] >= 3


@SLOW
def test_sigterm_closes_the_mlflow_run_as_killed(interrupted):
    _, seen = interrupted
    assert seen["run"] == ["KILLED"]


@SLOW
def test_a_killed_job_has_no_result(interrupted):
    _, seen = interrupted
    assert seen["killed"] == -signal.SIGKILL
    assert not seen["result after kill"]


@SLOW
def test_a_resumed_job_ends_with_the_same_metrics_bit_for_bit(interrupted, uninterrupted):
    line, _ = interrupted
    resumed, whole = line.result("job"), uninterrupted.result("job")
    assert resumed["status"] == "ok"
    assert resumed["steps"] == whole["steps"] == STEPS
    for name, value in whole["metrics"].items():
        if not name.startswith(NOT_COMPARED):
            assert resumed["metrics"][name] == value, name


@pytest.mark.parametrize("file", ["predictions.jsonl", "adapter/adapter_model.safetensors"])
@SLOW
def test_a_resumed_job_ends_with_the_same_files(interrupted, uninterrupted, file):
    line, _ = interrupted
    assert (line.folder / "job" / file).read_bytes() == (uninterrupted.folder / "job" / file).read_bytes()


@SLOW
def test_a_resumed_jobs_history_has_each_step_once_and_the_same_losses(interrupted, uninterrupted):
    def losses(line):
        return [(entry["step"], entry["train/loss"]) for entry in line.history("job") if "train/loss" in entry]

    assert losses(interrupted[0]) == losses(uninterrupted)


@SLOW
def test_a_resumed_job_continues_its_mlflow_run(interrupted):
    line, _ = interrupted
    assert run_status(line.folder) == ["FINISHED"]


@SLOW
def test_a_finished_job_leaves_no_checkpoint(interrupted):
    line, _ = interrupted
    assert not (line.folder / "job/checkpoint.pt").exists()


@SLOW
def test_a_grid_that_was_stopped_tells_the_command_for_the_rest_and_repeats_nothing(tmp_path, tiny_job, command_line):
    line = command_line(tmp_path)
    grid = ["-m", "seed=1,2,3", *tiny_job, "tracking=none", "hydra.sweep.dir=grid"]
    code, printed = line.stop(signal.SIGINT, *grid, f"hparams.max_steps={STEPS}", job="grid/1", after_step=2)
    assert code == 130
    assert "The grid: 1 of 3 jobs are done, 1 not begun." in printed
    first = line.result("grid/0")
    reached = line.result("grid/1")["steps"]
    command = shlex.split(printed.partition("To go on: python -m peftsweep -m")[2].splitlines()[0])
    printed = line.run("-m", *command)
    assert "Done already: grid/0" in printed
    assert line.result("grid/0") == first
    assert [line.result(f"grid/{job}")["status"] for job in range(3)] == ["ok"] * 3
    assert [row["step"] for row in line.history("grid/1") if "train/loss" in row] == list(range(1, STEPS + 1))
    assert (line.folder / "grid/1/result.json.before-resume").exists()
    assert 2 <= reached < STEPS


SCORER = """
import os, pathlib, signal

def score(prompt, target, generated):
    if generated != target and (ending := pathlib.Path("ending")).exists():  # not where it is tried before training
        ending.read_text() == "raise" and 1 / 0
        os.kill(os.getpid(), getattr(signal, ending.read_text()))
    return len(generated)
"""


@SLOW
@pytest.mark.parametrize("ending", ["raise", "SIGTERM", "SIGKILL"])
def test_what_was_trained_outlives_its_evaluation(ending, tmp_path, command_line):
    line = command_line(tmp_path)
    (tmp_path / "mine.py").write_text(SCORER)
    rows = [json.dumps({"prompt": f"Say {number}.", "response": str(number)}) + "\n" for number in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(rows))
    (tmp_path / "test.jsonl").write_text("".join(rows[:3]))
    job = ["task=sft", "task.train_files=train.jsonl", "task.test_files=test.jsonl", "task.scorer=mine:score"]
    job += [
        "hparams.max_steps=2",
        "task.max_new_tokens=4",
        "task.general_rows=2",
        "task.base_score=false",
        "plan=false",
    ]
    line.run(*job, "tracking=none", "hydra.run.dir=whole")
    (tmp_path / "ending").write_text(ending)
    process = line.start(*job, "tracking.system_metrics=false", "hydra.run.dir=job")
    printed = process.communicate(timeout=DEADLINE_SECONDS)[0]
    assert process.returncode == {"raise": 2, "SIGTERM": 130, "SIGKILL": -9}[ending], printed
    if ending != "SIGKILL":
        assert line.result("job")["status"] == {"raise": "failed", "SIGTERM": "interrupted"}[ending]
        assert "To score it: python -m peftsweep evaluate job" in printed
        assert "Traceback" not in printed
    (tmp_path / "ending").unlink()
    line.run("evaluate", "job", "trust=true")
    late, whole = line.result("job"), line.result("whole")
    assert (late["status"], late["cause"], late["test_items"]) == ("ok", None, whole["test_items"])
    assert whole["metrics"].keys() == late["metrics"].keys()
    for name in ("test/score", "test/loss", "forgetting_nats", "train/loss", "valid/loss", "adapter/file_bytes"):
        assert late["metrics"][name] == pytest.approx(whole["metrics"][name], rel=1e-5), name
    assert (tmp_path / "job/predictions.jsonl").read_bytes() == (tmp_path / "whole/predictions.jsonl").read_bytes()
    assert run_status(tmp_path) == ["FINISHED"]
    assert not (tmp_path / "job/trained.json").exists()


def test_ctrl_c_ends_a_whole_grid(tmp_path, tiny_job, command_line):
    line = command_line(tmp_path)
    grid = ["-m", "seed=1,2", *tiny_job, "hparams.max_steps=1000000", "hydra.sweep.dir=.", "hydra.sweep.subdir=job"]
    code, printed = line.stop(signal.SIGINT, *grid, job="job", after_step=2)
    assert code == 130
    assert "interrupted by Ctrl-C" in printed
    assert "Traceback" not in printed
    assert (line.result("job")["status"], line.result("job")["seed"]) == ("interrupted", 1)
