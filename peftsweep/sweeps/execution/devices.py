"""The GPUs of this machine, and the lock by which confirm jobs, whose time and memory are compared, are alone on a
device."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from peftsweep.records.files import write_whole
from peftsweep.sweeps.execution.leases import WORKERS_FOLDER
from peftsweep.sweeps.execution.slots import Slot

# A line of `nvidia-smi -L`, of a GPU or of one of its MIG slices.
_LISTED = re.compile(r"^(?P<gpu>GPU )?.*\(UUID: (?P<uuid>[^)]+)\)$")


def find_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; empty without any. Of a GPU that is
    divided, its MIG slices.

    The driver is asked, as torch would take seconds and open CUDA here.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return _all_gpus()


@cache
def _all_gpus(devices: Path = Path("/dev")) -> list[str]:
    """By UUID, from the driver's library or its tool; where a container has neither, by the number of its device
    file."""
    found = _listed_by_nvml() or _listed_by_tool()
    files = sorted(int(path.name.removeprefix("nvidia")) for path in devices.glob("nvidia[0-9]*"))
    return found or [str(index) for index in range(len(files))]


def _listed_by_nvml() -> list[str]:
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetUUID(part)) for handle in handles for part in _slices(pynvml, handle)]
    except pynvml.NVMLError:
        return []


def _slices(pynvml: Any, gpu: Any) -> list[Any]:
    """The MIG slices of a GPU; the GPU itself where it is not divided."""
    found = []
    with contextlib.suppress(pynvml.NVMLError):  # GPUs that can't be divided, and slices that were not made
        for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index))
    return found or [gpu]


def _listed_by_tool() -> list[str]:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    parts: list[list[str]] = []  # of each GPU: its own UUID, and those of its slices
    for line in filter(None, map(_LISTED.match, done.stdout.splitlines())):
        if line["gpu"]:
            parts.append([])
        parts[-1].append(line["uuid"])
    return [uuid for own, *slices in parts for uuid in slices or [own]]


class DeviceLock:
    """Held by one worker at a time: of all of this user's on each of its GPUs, of one sweep's on a machine's CPU, where
    other sweeps share the cores as any other program does.

    device: as the sweep's jobs are given it; stops: process to interrupt for the worker to end;
    ranks: devices that a job takes.
    """

    def __init__(self, slot: Slot, device: str, sweep: Path, stops: int, ranks: int = 1) -> None:
        self._gpus = _gpus(slot, device, ranks)
        if self._gpus:
            user, folder = getpass.getuser(), Path(tempfile.gettempdir())
            # In one order on all workers: two that each hold what the other wants would wait for ever.
            paths = sorted(folder / f"peftsweep-{user}-gpu-{_uuid_of(gpu)}.lock" for gpu in self._gpus)
        else:
            paths = [sweep / WORKERS_FOLDER / f"cpu-{socket.gethostname()}.lock"]
        self._locks = [FileLock(path) for path in paths]
        self._waited_for = paths[0]
        self._mine = {"sweep": sweep.name, "pid": stops}

    @property
    def is_held(self) -> bool:
        """By this worker."""
        return all(lock.is_locked for lock in self._locks)

    def acquire(self, timeout_seconds: float) -> None:
        """Try for so long, and note for others who holds it."""
        deadline = time.monotonic() + timeout_seconds
        for lock in self._locks:
            self._waited_for = Path(lock.lock_file)
            try:
                lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
            except Timeout:
                self.release()
                return
            since = {"since": time.strftime("%a %H:%M")}
            write_whole(self._waited_for.with_suffix(".json"), json.dumps(self._mine | since))

    def release(self) -> None:
        for lock in self._locks:
            lock.release()

    def describe_wait(self) -> str:
        """Who holds it, since when, and what one can do about it."""
        try:
            other = json.loads(self._waited_for.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            other = {"sweep": "?", "pid": "?", "since": "?"}  # it has just begun
        if not self._gpus:
            return f"the CPU runs another confirm job of this sweep (process {other['pid']}, since {other['since']})"
        return (
            f"GPU {','.join(self._gpus)} runs a confirm job of sweep {other['sweep']} (process {other['pid']}, since "
            f"{other['since']}); `kill -INT {other['pid']}` ends that sweep after its job, "
            "CUDA_VISIBLE_DEVICES=<another> takes this one elsewhere"
        )


def _uuid_of(gpu: str) -> str:
    """So that a GPU has one name, whether CUDA_VISIBLE_DEVICES was set or not."""
    known = _all_gpus()
    return known[int(gpu)] if gpu.isdecimal() and int(gpu) < len(known) else gpu


def _gpus(slot: Slot, device: str, ranks: int) -> list[str]:
    """The GPUs that a slot's jobs use, by the names that CUDA_VISIBLE_DEVICES has for them; none: they use the CPU."""
    if slot.device is not None:
        return slot.device.split(",")
    gpus = [] if device == "cpu" else find_gpus()
    number = device.partition(":")[2] or "0"
    return gpus[int(number) : int(number) + ranks] if number.isdecimal() else []
