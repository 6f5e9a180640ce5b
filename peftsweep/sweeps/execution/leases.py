"""Who is alive: every worker, and the controller, keeps a small file in the sweep's folder fresh.

Optuna's own heartbeat serves neither journal files nor ask and tell. A file says more anyway: what its owner does now.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from peftsweep.records.files import write_whole

WORKERS_FOLDER = "workers"
CONTROLLER_FILE = "controller.json"
REFRESH_SECONDS = 2.0


@dataclass(frozen=True)
class Lease:
    """What a process says of itself. created: seconds from the machine's start to its own, by which a reused process id
    is told apart; no time of day, as a clock that is set right would make all who live look dead."""

    owner: str
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    created: float = field(default_factory=lambda: _created(psutil.Process()))
    doing: dict[str, Any] = field(default_factory=dict)


class LeaseFile:
    """The file of one lease, rewritten by its owner."""

    def __init__(self, path: Path, owner: str) -> None:
        self.path, self._lease = path, Lease(owner)
        self._written_at_seconds = 0.0
        self._doing: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)

    def refresh(self, doing: dict[str, Any] | None = None, *, now: bool = False) -> None:
        """Say that the owner lives, and what it does; written when due, or at once."""
        changed = doing is not None and doing != self._doing
        self._doing = self._doing if doing is None else doing
        age = time.monotonic() - self._written_at_seconds
        if now or age >= REFRESH_SECONDS or (changed and age >= REFRESH_SECONDS / 4):
            self._written_at_seconds = time.monotonic()
            content = json.dumps(asdict(self._lease) | {"doing": self._doing})
            with contextlib.suppress(OSError):  # a full disk must not end a worker; its old lease still counts here
                write_whole(self.path, content)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _created(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()


def read_lease(path: Path) -> Lease | None:
    try:
        return Lease(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_alive(path: Path, lease_seconds: float) -> bool:
    """Whether the owner of a lease still runs: by its process on this machine, by the file's age on another.

    The age is taken between two times of the same file system, as clocks of machines differ.
    """
    lease = read_lease(path)
    if lease is None:
        return False
    if lease.host == socket.gethostname():
        return _runs(lease)
    return _age_seconds(path) <= lease_seconds


def _runs(lease: Lease) -> bool:
    try:
        process = psutil.Process(lease.pid)
        return abs(_created(process) - lease.created) < 1.5 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _age_seconds(path: Path) -> float:
    """Infinite for a file that is gone; 0 where the folder can't be written: nothing is known then, and to give up
    those who live would cost more than to wait."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix="now-") as probe:
            return os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
    except OSError:
        return 0.0


def living(folder: Path, lease_seconds: float) -> dict[str, Lease]:
    """The workers that are alive, by name."""
    found = {}
    for path in sorted((folder / WORKERS_FOLDER).glob("*.json")):
        lease = read_lease(path)
        if lease is not None and is_alive(path, lease_seconds):
            found[lease.owner] = lease
    return found
