"""A job on the second card, in a process that sees both: nothing of it lies on the first."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
# A second process, since that of the tests sees one card.
ON_THE_SECOND = """
import json, sys
from pathlib import Path
from typing import Any
import torch
from on_cuda import Jobs
run = Jobs(Path(sys.argv[1]))
result = run("device=cuda:1", *sys.argv[2:])
peaks = [torch.cuda.max_memory_reserved(0), result.metrics["memory/job_peak_reserved_bytes"]]
print(json.dumps({"status": result.status, "peaks": peaks, "current": torch.cuda.current_device()}))
"""


@pytest.mark.parametrize("settings", [["method=lora"], ["method=full", "hparams.compile=true"], ["method=cartridge"]])
def test_a_job_on_the_second_card_leaves_the_first_alone(
    settings: list[str], two_cards: Mapping[str, str], tmp_path: Path, noted: Callable[..., None]
) -> None:
    paths = [str(TESTS.parent), str(TESTS), *filter(None, [two_cards.get("PYTHONPATH")])]
    command = [sys.executable, "-c", ON_THE_SECOND, str(tmp_path), *settings]
    environment = {**two_cards, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    first, second = found["peaks"]
    noted(first_bytes=first, second_bytes=second)
    assert (found["status"], found["current"]) == ("ok", 1)
    assert first == 0
    assert second > 0


SMALL = ["tracking=none", "hparams.max_steps=6", "hparams.eval_every=3", "task.test_rows=20", "task.valid_rows=20"]


def result_of(folder: Path, environment: Mapping[str, str], *settings: str) -> dict[str, Any]:
    paths = [str(TESTS.parent), *filter(None, [environment.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "peftsweep", *SMALL, *settings, f"hydra.run.dir={folder}"]
    path = {**environment, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=path, cwd=folder.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.parametrize(
    "settings",
    [
        ["parallel=fsdp", "method=lora"],
        ["parallel=fsdp", "method=full"],
        ["parallel=ddp", "method=oft"],
        ["parallel=fsdp", "method=lora", "model.dtype=int4"],
        ["parallel=fsdp", "method=lora", "parallel.offload=true"],
    ],
    ids=" ".join,
)
def test_two_cards_do_what_one_does(
    settings: list[str], two_cards: Mapping[str, str], tmp_path: Path, noted: Callable[..., None]
) -> None:
    if "model.dtype=int4" in settings:
        pytest.importorskip("bitsandbytes")
    alone = result_of(tmp_path / "alone", two_cards, *(s for s in settings if not s.startswith("parallel")))
    together = result_of(tmp_path / "together", two_cards, *settings)
    names = ("train/loss", "valid/loss", "test/loss")
    noted(alone=[alone["metrics"][name] for name in names], together=[together["metrics"][name] for name in names])
    noted(peaks=together["environment"]["peak_bytes_by_rank"], over=together["environment"]["interconnect"])
    for name in names:
        assert together["metrics"][name] == pytest.approx(alone["metrics"][name], rel=0.02)
