"""Where studies are kept: Optuna's journal file in the sweep's folder, or any database that Optuna can write to."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from peftsweep.errors import ConfigError, Problem
from peftsweep.redact import redact_forms

JOURNAL = "study.journal"
LOCK_GRACE_SECONDS = 10  # a writer that died holding the lock delays the others by this much

optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """The storage of a sweep. Raises ConfigError: it can't be reached or written, or needs a driver."""
    try:
        if url is None:
            return JournalStorage(MendingJournal(folder / JOURNAL))
        storage = optuna.storages.get_storage(url)
        storage.get_all_studies()  # a server that is down answers only now
    except Exception as error:  # drivers raise what they like
        raise ConfigError(_unreachable(folder, url, error)) from error
    return storage


def _unreachable(folder: Path, url: str | None, error: Exception) -> Problem:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    place = redact_forms(url) if url else str(folder / JOURNAL)
    fix = "Check the address, its server, and its driver (pip install 'peftsweep[server]' for PostgreSQL)."
    return Problem(f"the storage of studies must be reachable ({redact_forms(reason)})", place, "storage", fix)


class MendingJournal(JournalFileBackend):
    """Optuna's journal file, which also survives a line that was cut short: a full disk or a lost machine leaves one,
    and the next line appended to it would make all that follows unreadable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_lock = JournalFileOpenLock(str(path), grace_period=LOCK_GRACE_SECONDS)
        super().__init__(str(path), lock_obj=self._file_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """One write, under the lock, after the last whole line."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._locked(), self._path.open("r+b") as stream:
            end = _end_of_whole_lines(stream)
            stream.truncate(end)
            stream.seek(end)
            try:
                stream.write(lines)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(end)
                raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._file_lock.acquire()
        try:
            yield
        finally:
            self._file_lock.release()


def _end_of_whole_lines(stream: Any) -> int:
    """Position after the last line break; the file ends there unless its last line is torn."""
    size = int(stream.seek(0, 2))
    block = 1 << 16
    position = size
    while position > 0:
        start = max(0, position - block)
        stream.seek(start)
        found = stream.read(position - start).rfind(b"\n")
        if found >= 0:
            if start + found + 1 < size:
                logging.getLogger(__name__).warning("Dropped a line of the study journal that was cut short.")
            return start + found + 1
        position = start
    return 0
