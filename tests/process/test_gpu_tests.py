"""How `make test-gpu` ends where there is no card, and what its processes see; with a torch that only pretends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
TORCH = """
class cuda:
    is_lost = False
    is_available = staticmethod(lambda: {available})
    empty_cache = staticmethod(lambda: None)

    @classmethod
    def synchronize(cls):
        if cls.is_lost:
            raise RuntimeError("CUDA error: device-side assert triggered")
"""
TESTS = {
    "test_one.py": """
import os, pytest

def test_card(noted):
    noted(card=os.environ["CUDA_VISIBLE_DEVICES"], planned_bytes=2**31)

def test_both(two_cards):
    assert two_cards["CUDA_VISIBLE_DEVICES"] == "3,5"
""",
    "test_two.py": """
import os, pytest

def test_card(noted):
    noted(card=os.environ["CUDA_VISIBLE_DEVICES"])

def test_that_loses_the_card():
    import torch
    torch.cuda.is_lost = True
    pytest.fail("it is lost")

def test_after_it(noted):
    import torch
    assert not torch.cuda.is_lost
""",
}


def environment(folder: Path, cards: str, *, available: bool) -> dict[str, str]:
    """Of a process with these cards, and a torch that can use them or not."""
    (folder / "torch.py").write_text(TORCH.format(available=available))
    paths = os.pathsep.join([str(folder), str(ROOT), str(ROOT / "tests")])
    ours = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return ours | {"CUDA_VISIBLE_DEVICES": cards, "PYTHONPATH": paths}


def make_test_gpu(folder: Path, cards: str) -> subprocess.CompletedProcess[str]:
    """With this Python, as if it were installed in .venv."""
    for name in (".installed", ".installed-dev"):
        (folder / name).touch()
    command = ["make", "--silent", "test-gpu", f"VENV={folder}", f"BIN={Path(sys.executable).parent}"]
    given = environment(folder, cards, available=False)
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)


def test_without_a_card_it_ends_in_a_line_and_well(tmp_path: Path) -> None:
    done = make_test_gpu(tmp_path, cards="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("No GPU: none of the tests that need CUDA was run.")
    assert len(done.stdout.splitlines()) == 1


def test_a_card_that_torch_cannot_use_is_a_fault(tmp_path: Path) -> None:
    done = make_test_gpu(tmp_path, cards="0")
    assert done.returncode != 0
    assert done.stdout.startswith("There is a GPU, but the torch of this Python can't use it")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.slow
def test_each_process_sees_a_card_and_one_that_loses_it_is_replaced(tmp_path: Path) -> None:
    """The two files go to a process each; the table tells what they noted there."""
    given, tests = environment(tmp_path, "3,5", available=True), tmp_path / "gpu"
    tests.mkdir()
    shutil.copy(ROOT / "tests/gpu/conftest.py", tests)
    for name, content in TESTS.items():
        (tests / name).write_text(content)
    options = ["-q", "--import-mode=importlib", "-o", "markers=gpu", "-p", "no:cacheprovider", "--rootdir", "."]
    command = [sys.executable, "-m", "pytest", *options, "-n", "auto", "--dist", "worksteal", "-m", "gpu", "gpu"]
    done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, check=False)
    table = done.stdout[done.stdout.index("what was measured") :].splitlines()
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in table[1:] if line.startswith("  ")}
    assert done.returncode == 1
    assert rows["test_both"].startswith("passed")
    assert rows["test_that_loses_the_card"].startswith("FAILED")
    assert rows["test_after_it"].startswith("passed")
    assert all(any(f"card {card}" in line for line in table) for card in (3, 5))
