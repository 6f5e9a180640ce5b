"""The GPUs of this machine, and the lock by which confirm jobs, whose time and memory are compared, are alone on a
device."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

from peftsweep.records.files import write_whole
from peftsweep.sweeps.execution.leases import WORKERS_FOLDER
from peftsweep.sweeps.execution.slots import Slot


def find_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; empty without any.

    The driver's own tool is asked, as torch would take seconds and open CUDA here.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(index) for index, line in enumerate(done.stdout.splitlines()) if line.startswith("GPU ")]


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
            path = Path(tempfile.gettempdir()) / f"peftsweep-{getpass.getuser()}-gpu-{self._gpu}.lock"
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


def _gpu(slot: Slot, device: str) -> str | None:
    """The GPU that a slot's jobs use, by the name that CUDA_VISIBLE_DEVICES has for it; None: they use the CPU."""
    if slot.device is not None:
        return slot.device
    gpus = [] if device == "cpu" else find_gpus()
    number = device.partition(":")[2] or "0"
    return gpus[int(number)] if number.isdecimal() and int(number) < len(gpus) else None
