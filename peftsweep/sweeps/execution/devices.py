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
    """Held by one worker at a time: of all of this user's on one GPU, of one sweep's on a machine's CPU, where other
    sweeps share the cores as any other program does.

    device: as the sweep's jobs are given it; stops: process to interrupt for the worker to end.
    """

    def __init__(self, slot: Slot, device: str, sweep: Path, stops: int) -> None:
        self._gpu = _gpu(slot, device)
        if self._gpu is None:
            path = sweep / WORKERS_FOLDER / f"cpu-{socket.gethostname()}.lock"
        else:
            path = Path(tempfile.gettempdir()) / f"peftsweep-{getpass.getuser()}-gpu-{_uuid_of(self._gpu)}.lock"
        self._lock, self._note = FileLock(path), path.with_suffix(".json")
        self._mine = {"sweep": sweep.name, "pid": stops}

    @property
    def is_held(self) -> bool:
        """By this worker."""
        return self._lock.is_locked

    def acquire(self, timeout_seconds: float) -> None:
        """Try for so long, and note for others who holds it."""
        with contextlib.suppress(Timeout):
            self._lock.acquire(timeout=timeout_seconds)
            write_whole(self._note, json.dumps(self._mine | {"since": time.strftime("%a %H:%M")}))

    def release(self) -> None:
        self._lock.release()

    def describe_wait(self) -> str:
        """Who holds it, since when, and what one can do about it."""
        try:
            other = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            other = {"sweep": "?", "pid": "?", "since": "?"}  # it has just begun
        if self._gpu is None:
            return f"the CPU runs another confirm job of this sweep (process {other['pid']}, since {other['since']})"
        return (
            f"GPU {self._gpu} runs a confirm job of sweep {other['sweep']} (process {other['pid']}, since "
            f"{other['since']}); `kill -INT {other['pid']}` ends that sweep after its job, "
            "CUDA_VISIBLE_DEVICES=<another> takes this one elsewhere"
        )


def _uuid_of(gpu: str) -> str:
    """So that a GPU has one name, whether CUDA_VISIBLE_DEVICES was set or not."""
    known = _all_gpus()
    return known[int(gpu)] if gpu.isdecimal() and int(gpu) < len(known) else gpu


def _gpu(slot: Slot, device: str) -> str | None:
    """The GPU that a slot's jobs use, by the name that CUDA_VISIBLE_DEVICES has for it; None: they use the CPU."""
    if slot.device is not None:
        return slot.device
    gpus = [] if device == "cpu" else find_gpus()
    number = device.partition(":")[2] or "0"
    return gpus[int(number)] if number.isdecimal() and int(number) < len(gpus) else None
