"""Jobs over several processes, as real command lines: the result of one, and what is left when a rank is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.process

SMALL = [
    "device=cpu",
    "tracking=none",
    "method=lora",
    "hparams.max_steps=6",
    "hparams.eval_every=3",
    "task.train_rows=64",
    "task.valid_rows=10",
    "task.test_rows=10",
    "task.max_new_tokens=24",
    "task.general_rows=4",
]
LONG = [*SMALL, "hparams.max_steps=5000", "hparams.eval_every=0"]
WAIT_SECONDS = 120.0


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [row.get("train/loss", row.get("valid/loss")) for row in rows]


@pytest.mark.parametrize(
    "parallel",
    [
        "parallel=fsdp",
        pytest.param("parallel=ddp", marks=pytest.mark.slow),
        pytest.param("parallel=fsdp parallel.reshard_after_forward=false", marks=pytest.mark.slow),
        pytest.param("parallel=fsdp parallel.dp_shard_size=3", marks=pytest.mark.slow),
    ],
)
def test_several_ranks_do_what_one_process_does(parallel, tmp_path_factory, command_line):
    line = command_line(tmp_path_factory.mktemp("ranks"))
    line.run(*SMALL, "hydra.run.dir=alone")
    line.run(*SMALL, *parallel.split(), "hydra.run.dir=together")
    assert losses(line.folder / "together") == pytest.approx(losses(line.folder / "alone"), abs=1e-4)
    alone, together = ((line.folder / name / "predictions.jsonl").read_text() for name in ("alone", "together"))
    assert together == alone


def start(folder: Path, *settings: str) -> subprocess.Popen[bytes]:
    """A long job on two ranks, after its first step."""
    line = [sys.executable, "-m", "peftsweep", *LONG, *settings, "hydra.run.dir=job"]
    job = subprocess.Popen(line, cwd=folder)
    deadline = time.monotonic() + WAIT_SECONDS
    while not (folder / "job" / "history.jsonl").exists() or not losses(folder / "job"):
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return job


def others(parent: int) -> list[int]:
    children = psutil.Process(parent).children()
    return [child.pid for child in children if "peftsweep.job.other_rank" in child.cmdline()]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "vqa", "image-gen"])
def test_models_of_other_kinds_are_shared_out_too(task, tmp_path_factory, command_line):
    line = command_line(tmp_path_factory.mktemp("kinds"))
    few = {"image-gen": ["task.inference_steps=2"]}.get(task, ["task.test_rows=20", "task.valid_rows=20"])
    settings = [f"task={task}", "device=cpu", "tracking=none", "hparams.max_steps=4", "hparams.eval_every=2", *few]
    line.run(*settings, "hydra.run.dir=alone")
    line.run(*settings, "parallel=fsdp", "hydra.run.dir=together")
    assert losses(line.folder / "together") == pytest.approx(losses(line.folder / "alone"), abs=1e-4)
    alone, together = (json.loads((line.folder / f / "result.json").read_text()) for f in ("alone", "together"))
    assert together["environment"]["ranks"] == "2"
    for key in (key for key in alone["metrics"] if key.startswith("test/")):
        assert together["metrics"][key] == pytest.approx(alone["metrics"][key], abs=1e-4)


@pytest.mark.slow
def test_ranks_that_torchrun_started_are_joined(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "peftsweep"]
    line = [*torchrun, *SMALL, "parallel=fsdp", "hydra.run.dir=job"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert json.loads((tmp_path / "job" / "result.json").read_text())["environment"]["ranks"] == "2"


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_with_its_number_and_cause(tmp_path):
    job = start(tmp_path, "parallel=ddp")
    (other,) = others(job.pid)
    os.kill(other, signal.SIGKILL)
    assert job.wait(WAIT_SECONDS) == 1
    result = json.loads((tmp_path / "job" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "rank 1" in result["cause"]
    assert "SIGKILL" in result["cause"]


@pytest.mark.slow
def test_one_ctrl_c_ends_all_ranks(tmp_path):
    job = start(tmp_path, "parallel=ddp")
    started = others(job.pid)
    job.send_signal(signal.SIGINT)
    assert job.wait(WAIT_SECONDS) == 130
    assert json.loads((tmp_path / "job" / "result.json").read_text())["status"] == "interrupted"
    assert (tmp_path / "job" / "checkpoint.pt").exists()
    assert not any(Path(f"/proc/{number}").exists() for number in started)


@pytest.fixture(scope="module")
def interrupted_training_of_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    job = start(folder, "method=full", "parallel=fsdp", "hparams.max_steps=40")
    job.send_signal(signal.SIGINT)
    assert job.wait(WAIT_SECONDS) == 130
    assert json.loads((folder / "job" / "result.json").read_text())["status"] == "interrupted"
    assert len(list((folder / "job").glob("checkpoint-*.shards"))) == 1
    return folder / "job"


@pytest.fixture(scope="module")
def whole_training(tmp_path_factory, command_line):
    line = command_line(tmp_path_factory.mktemp("whole"))
    line.run(*LONG, "method=full", "hparams.max_steps=40", "hydra.run.dir=job")
    return losses(line.folder / "job")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["parallel=fsdp", "parallel=fsdp parallel.dp_shard_size=3", "parallel=none"])
def test_training_of_shards_goes_on_with_any_number_of_ranks(
    ranks, interrupted_training_of_shards, whole_training, tmp_path_factory, command_line
):
    line = command_line(tmp_path_factory.mktemp("resumed"))
    shutil.copytree(interrupted_training_of_shards, line.folder / "job")
    line.run("resume=job", *ranks.split())
    assert losses(line.folder / "job") == pytest.approx(whole_training, abs=1e-4)
    assert not list((line.folder / "job").glob("checkpoint*"))


@pytest.mark.slow
def test_training_of_whole_weights_goes_on_in_shards(whole_training, tmp_path_factory, command_line):
    line = command_line(tmp_path_factory.mktemp("alone"))
    settings = [*LONG, "method=full", "hparams.max_steps=40", "hydra.run.dir=job"]
    line.stop(signal.SIGINT, *settings, job="job", after_step=3)
    line.run("resume=job", "parallel=fsdp")
    assert losses(line.folder / "job") == pytest.approx(whole_training, abs=1e-4)
