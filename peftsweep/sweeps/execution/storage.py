"""Where studies are kept: Optuna's journal file in the sweep's folder, or any database that Optuna can write to."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from peftsweep.errors import ConfigError, Problem
from peftsweep.records.redact import redact_forms

JOURNAL = "study.journal"
SQLITE_WAIT_SECONDS = 60
LOCK_GRACE_SECONDS = 10  # a writer that died holding the lock delays the others by this much

optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """The storage of a sweep. Raises ConfigError: it can't be reached or written, or needs a driver."""
    try:
        if url is None:
            return JournalStorage(MendingJournal(folder / JOURNAL))
        storage = _open_sqlite(url) if url.startswith("sqlite") else optuna.storages.get_storage(url)
        storage.get_all_studies()  # a server that is down answers only now
    except Exception as error:  # drivers raise what they like
        raise ConfigError(_unreachable(folder, url, error)) from error
    return storage


def _open_sqlite(url: str) -> BaseStorage:
    """SQLite takes its lock at the first write of a transaction: two workers that both read "waiting" would both win
    the trial. Here each transaction takes it at once, and waits for it."""
    from sqlalchemy import event

    storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": SQLITE_WAIT_SECONDS}})
    storage.engine.dispose()

    @event.listens_for(storage.engine, "connect")
    def leave_transactions_to_us(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(storage.engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return optuna.storages.get_storage(storage)


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
        """One write, under the lock, after the last whole line.

        In append mode: the lock of a writer that hangs for long is taken from it, and it must not write over what came
        since.
        """
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._locked(), self._path.open("a+b", buffering=0) as stream:
            end, size = _end_of_whole_lines(stream)
            if end < size:
                stream.truncate(end)
            try:
                written = stream.write(lines)
                if written < len(lines):  # the next write would tell why: the disk is full
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
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


def _end_of_whole_lines(stream: Any) -> tuple[int, int]:
    """Position after the last line break, and the file's size: more, if its last line is torn."""
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
            return start + found + 1, size
        position = start
    return 0, size
