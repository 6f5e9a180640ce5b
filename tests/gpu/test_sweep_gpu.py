"""A fair sweep on a CUDA device: each trial sees its slot's GPU, and memory can be a limit."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, set_seed

from peftsweep.modalities.text.pocket import LLAMA_FOLDER

SMALL = ["task.train_rows=200", "task.valid_rows=20", "task.test_rows=8", "task.general_rows=4", "tracking=none"]
QUICK = ["hparams.max_steps=4", "task.max_new_tokens=16", "allow_shared_gpu=true", "n_trials=3", "confirm.seeds=1"]
COUNT = (
    "import torch; from peftsweep.sweeps.execution.devices import find_gpus; "
    "print(len(find_gpus()), torch.cuda.device_count())"
)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "peftsweep", "-m", "hydra/sweeper=fair", "name=gpu", *SMALL, *QUICK, *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def sweep(folder: Path, *arguments: str, code: int = 0) -> None:
    """Fails unless it ends with `code`, with what it printed."""
    running = start(folder, *arguments)
    printed, _ = running.communicate()
    assert running.returncode == code, printed


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("outputs/sweeps/gpu/*/*/result.json"))]


def row(folder: Path) -> dict[str, Any]:
    """Of the only study."""
    [found] = json.loads((folder / "outputs/sweeps/gpu/table.json").read_text())["rows"]
    return dict(found)


def test_the_driver_names_as_many_gpus_as_torch_sees(
    whole_machine: Mapping[str, str], noted: Callable[..., None]
) -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], env=whole_machine, capture_output=True, text=True, check=True)
    named, seen = map(int, done.stdout.split())
    noted(cards=seen)
    assert named == seen


def test_trials_run_on_the_gpu_and_measure_its_memory(tmp_path: Path) -> None:
    sweep(tmp_path, "method=lora,ia3")
    found = results(tmp_path)
    assert len(found) >= 2 * (3 + 1)
    assert all("gpu" in result["environment"] for result in found)
    finished = [result for result in found if result["status"] == "ok"]
    assert all(result["metrics"]["memory/train_peak_reserved_bytes"] > 0 for result in finished)


def test_no_trial_wins_that_needs_more_memory_than_the_limit(tmp_path: Path) -> None:
    sweep(tmp_path, "method=lora", "constraint=memory<=1MB", code=1)
    assert row(tmp_path)["best"] == {}
    assert row(tmp_path)["trials"] == 3


def test_two_workers_share_a_gpu_when_they_may(tmp_path: Path) -> None:
    sweep(tmp_path, "method=lora", "workers=2", "device=cuda:0", "confirm.seeds=0")


def write_model(folder: Path, positions: int) -> None:
    """A random GPT-2 of so many positions, with the embedded model's tokens. A longer row ends in a device-side assert
    of its table of positions."""
    tokenizer = AutoTokenizer.from_pretrained(LLAMA_FOLDER)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    set_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=positions, n_embd=64, n_layer=2, n_head=2, **ends)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_lost_device_is_the_result_of_its_trial_and_the_sweep_goes_on_in_a_new_process(
    tmp_path: Path, noted: Callable[..., None]
) -> None:
    """The model is mended as soon as the first trial has failed on it. Whatever runs after that runs in a process with
    a device that answers."""
    model = tmp_path / "model"
    write_model(model, positions=16)
    on_it = ["model=hf", "model.id=./model", "model.dtype=float32", "task.source=embedded", "task.base_score=false"]
    alone = ["workers=1", "task.general_rows=0", "plan=false", "confirm.seeds=0"]
    running = start(tmp_path, "method=lora", *on_it, *alone)
    while running.poll() is None and not results(tmp_path):
        time.sleep(0.05)
    write_model(model, positions=512)
    printed, _ = running.communicate()
    assert running.returncode == 0, printed
    lost, *others = results(tmp_path)
    noted(cause=lost["cause"][:70], then=", ".join(result["status"] for result in others))
    assert lost["status"] == "failed"
    assert "the device must go on answering" in lost["cause"]
    assert "device-side assert" in lost["cause"]
    assert len(others) == 3
    assert {result["status"] for result in others} <= {"ok", "pruned"}
    assert (row(tmp_path)["trials"], row(tmp_path)["failed"]) == (3, 0)
