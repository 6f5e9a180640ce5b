"""Who is alone on a device: the other is a real process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peftsweep.sweeps.execution import devices
from peftsweep.sweeps.execution.devices import DeviceLock, find_gpus
from peftsweep.sweeps.execution.slots import Slot

HOLD = """
import sys
from pathlib import Path
from peftsweep.sweeps.execution.devices import DeviceLock
from peftsweep.sweeps.execution.slots import Slot

lock = DeviceLock(Slot(0, sys.argv[2] or None), "auto", Path(sys.argv[1]), stops=4321)
lock.acquire(30)
print("held" if lock.is_held else "not held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of two sweeps, on a machine with two GPUs and with temporary files of its own."""
    for name in ("monday", "tuesday"):
        (tmp_path / name / "workers").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    return tmp_path


@contextmanager
def held_elsewhere(sweep: Path, gpu: str = "") -> Iterator[subprocess.Popen[str]]:
    """gpu: empty leaves the choice to what is visible."""
    command = [sys.executable, "-c", HOLD, str(sweep), gpu]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other
        other.kill()


def acquired(sweep: Path, gpu: str | None = None, device: str = "auto") -> bool:
    lock = DeviceLock(Slot(0, gpu), device, sweep, stops=1)
    lock.acquire(0.01)
    is_held = lock.is_held
    lock.release()
    return is_held


def test_a_gpu_is_one_sweeps_at_a_time_however_it_is_named(sweeps: Path) -> None:
    with held_elsewhere(sweeps / "monday", "1"):
        assert not acquired(sweeps / "tuesday", "1")
        assert not acquired(sweeps / "tuesday", device="cuda:1")
        assert acquired(sweeps / "tuesday", "0")
        assert acquired(sweeps / "tuesday", device="auto")
        assert acquired(sweeps / "tuesday", device="cpu")


def test_on_a_cpu_only_jobs_of_one_sweep_wait_for_each_other(sweeps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with held_elsewhere(sweeps / "monday"):
        assert not acquired(sweeps / "monday")
        assert acquired(sweeps / "tuesday")


def test_a_wait_names_who_holds_the_gpu_and_the_ways_out(sweeps: Path) -> None:
    with held_elsewhere(sweeps / "monday", "1"):
        told = DeviceLock(Slot(0, "1"), "auto", sweeps / "tuesday", stops=1).describe_wait()
    for fragment in ("GPU 1", "sweep monday", "process 4321", "since ", "kill -INT 4321", "CUDA_VISIBLE_DEVICES"):
        assert fragment in told


def test_what_a_dead_process_held_is_free(sweeps: Path) -> None:
    with held_elsewhere(sweeps / "monday", "1") as other:
        other.kill()
        other.wait()
        assert acquired(sweeps / "tuesday", "1")


@pytest.mark.parametrize(("visible", "gpus"), [("0,1", ["0", "1"]), ("", []), ("-1", []), ("GPU-a", ["GPU-a"])])
def test_the_gpus_are_those_that_are_visible(visible: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpus() == gpus


TOOL = """\
#!/bin/sh
echo "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)"
echo "  MIG 3g.20gb     Device  0: (UUID: MIG-bbbb)"
echo "  MIG 3g.20gb     Device  1: (UUID: MIG-cccc)"
echo "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-dddd)"
"""


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Its folder of programs: none, and no driver's library."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    devices._all_gpus.cache_clear()
    yield tmp_path
    devices._all_gpus.cache_clear()


def test_the_drivers_tool_names_gpus_and_the_slices_of_divided_ones(bare_machine: Path) -> None:
    tool = bare_machine / "nvidia-smi"
    tool.write_text(TOOL)
    tool.chmod(0o755)
    assert find_gpus() == ["MIG-bbbb", "MIG-cccc", "GPU-dddd"]


def test_the_drivers_library_does_too(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml({"GPU-aaaa": ["MIG-bbbb"], "GPU-dddd": []}))
    assert find_gpus() == ["MIG-bbbb", "GPU-dddd"]


def test_a_container_with_neither_has_its_device_files(bare_machine: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (bare_machine / name).touch()
    assert devices._all_gpus(bare_machine) == ["0", "1"]


def test_a_machine_without_any_has_none(bare_machine: Path) -> None:
    assert devices._all_gpus(bare_machine) == []


def test_a_gpu_has_one_lock_whether_it_is_named_by_number_or_uuid(
    bare_machine: Path, sweeps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml({"GPU-aaaa": [], "GPU-dddd": []}))
    by_number, by_uuid = (DeviceLock(Slot(0, name), "auto", sweeps, stops=1) for name in ("1", "GPU-dddd"))
    by_number.acquire(0.0)
    by_uuid.acquire(0.0)
    assert (by_number.is_held, by_uuid.is_held) == (True, False)


def test_a_group_of_gpus_is_held_whole_or_not_at_all(bare_machine: Path, sweeps: Path) -> None:
    group, other = (DeviceLock(Slot(0, names), "auto", sweeps, stops=7, ranks=2) for names in ("4,5", "6,5"))
    alone = DeviceLock(Slot(0, "6"), "auto", sweeps, stops=8)
    group.acquire(0.0)
    other.acquire(0.0)
    assert (group.is_held, other.is_held) == (True, False)
    assert "GPU 6,5 runs a confirm job" in other.describe_wait()
    alone.acquire(0.0)
    assert alone.is_held
    group.release()
    alone.release()
    other.acquire(0.0)
    assert other.is_held


class FakeNvml(types.ModuleType):
    """Handles are UUIDs. gpus: UUID of each, and those of its slices."""

    class NVMLError(Exception):
        pass

    def __init__(self, gpus: dict[str, list[str]]) -> None:
        super().__init__("pynvml")
        self._gpus = gpus

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return list(self._gpus)[index]

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        return handle

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: str) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: str, index: int) -> str:  # noqa: N802
        if index >= len(self._gpus[gpu]):
            raise self.NVMLError("not found")
        return self._gpus[gpu][index]
