"""A job on the second card, in a process that sees both: nothing of it lies on the first."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# A second process, since that of the tests sees one card.
ON_THE_SECOND = """
import json, sys
from pathlib import Path
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
