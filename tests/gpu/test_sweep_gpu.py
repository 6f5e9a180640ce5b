"""A fair sweep on a CUDA device: each trial sees its slot's GPU, and memory can be a limit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from peftsweep.sweeps.execution.devices import find_gpus

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SMALL = ["task.train_rows=200", "task.valid_rows=20", "task.test_rows=8", "task.general_rows=4", "tracking=none"]
QUICK = ["hparams.max_steps=4", "task.max_new_tokens=16", "allow_shared_gpu=true", "n_trials=3", "confirm.seeds=1"]


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "peftsweep", "-m", "hydra/sweeper=fair", "name=gpu", *SMALL, *QUICK, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def results(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("outputs/sweeps/gpu/*/*/result.json"))]


def test_the_driver_names_as_many_gpus_as_torch_sees():
    assert len(find_gpus()) == torch.cuda.device_count()


def test_trials_run_on_the_gpu_and_measure_its_memory(tmp_path):
    done = sweep(tmp_path, "method=lora,ia3")
    assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    assert len(found) >= 2 * (3 + 1)
    assert all("gpu" in result["environment"] for result in found)
    finished = [result for result in found if result["status"] == "ok"]
    assert all(result["metrics"]["memory/train_peak_reserved_bytes"] > 0 for result in finished)


def test_no_trial_wins_that_needs_more_memory_than_the_limit(tmp_path):
    done = sweep(tmp_path, "method=lora", "constraint=memory<=1MB")
    table = json.loads((tmp_path / "outputs/sweeps/gpu/table.json").read_text())
    assert done.returncode == 1
    assert table["rows"][0]["best"] == {}
    assert table["rows"][0]["trials"] == 3


def test_two_workers_share_a_gpu_when_they_may(tmp_path):
    done = sweep(tmp_path, "method=lora", "workers=2", "device=cuda:0")
    assert done.returncode == 0, done.stderr
