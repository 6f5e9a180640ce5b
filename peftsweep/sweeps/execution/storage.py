"""Where studies are kept: Optuna's journal file in the sweep's folder, or any database that Optuna can write to.

Here is also all that this package uses of Optuna without its promise: private names, and how its journal is written. A
test names each, so that a release of Optuna that moves one is met there and not in a sweep.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial

from peftsweep.errors import ConfigError, Problem
from peftsweep.records.redact import redact_forms

JOURNAL = "study.journal"
SQLITE_WAIT_SECONDS = 60
LOCK_GRACE_SECONDS = 10  # a writer that died holding the lock delays the others by this much
BLOCK_BYTES = 1 << 16

log = logging.getLogger(__name__)

optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """The storage of a sweep. Raises ConfigError: it can't be reached or written, or needs a driver."""
    try:
        if url is None:
            return JournalStorage(RepairingJournal(folder / JOURNAL))
        storage = _open_sqlite(url) if url.startswith("sqlite") else optuna.storages.get_storage(url)
        storage.get_all_studies()  # a server that is down answers only now
    except Exception as error:  # drivers raise what they like
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        rule = f"the storage of studies must be reachable ({redact_forms(reason)})"
        place = redact_forms(url) if url else str(folder / JOURNAL)
        fix = "Check the address, its server, and its driver (pip install 'peftsweep[server]' for PostgreSQL)."
        raise ConfigError(Problem(rule, place, "storage", fix)) from error
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


def storage_id(trial: FrozenTrial) -> int:
    """A trial's key in its storage. All of a storage's methods want it, and no public name gives it."""
    return trial._trial_id


def forget_claimed_trial(storage: BaseStorage) -> None:
    """Optuna's journal answers a claim with "the last trial that I won is this one", which is also true of a trial that
    was won, put back, and has just been won by another worker."""
    replayed = getattr(storage, "_replay_result", None)
    if replayed is not None:
        replayed._worker_id_to_owned_trial_id.pop(replayed.worker_id, None)


class RepairingJournal(JournalFileBackend):
    """Optuna's journal file, which also survives a line that was cut short: a full disk or a lost machine leaves one,
    and the next line appended to it would make all that follows unreadable.

    It writes what the parent class does, a JSON object a line, and takes the same lock.
    """

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
        self._file_lock.acquire()
        try:
            with self._path.open("a+b", buffering=0) as stream:
                self._append(stream, lines)
        finally:
            self._file_lock.release()

    def _append(self, stream: Any, lines: bytes) -> None:
        size = int(stream.seek(0, os.SEEK_END))
        end = _end_of_whole_lines(stream, size)
        if end < size:
            log.warning("Dropped a line of the study journal that was cut short.")
            stream.truncate(end)
        try:
            if stream.write(lines) < len(lines):  # the next write would tell why: the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(end)
            raise


def _end_of_whole_lines(stream: Any, size: int) -> int:
    """Position after the last line break; less than the file's size, if its last line is torn."""
    position = size
    while position > 0:
        start = max(0, position - BLOCK_BYTES)
        stream.seek(start)
        found = int(stream.read(position - start).rfind(b"\n"))
        if found >= 0:
            return start + found + 1
        position = start
    return 0
