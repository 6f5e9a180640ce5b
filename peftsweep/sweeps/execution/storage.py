"""Where studies are kept: Optuna's journal file in the sweep's folder, or any database that Optuna can write to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage

from peftsweep.errors import ConfigError, Problem
from peftsweep.records.redact import redact_forms
from peftsweep.sweeps.execution.optuna_internals import RepairingJournal

JOURNAL = "study.journal"
SQLITE_WAIT_SECONDS = 60

optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """The storage of a sweep. Raises ConfigError: it can't be reached or written, or needs a driver."""
    try:
        if url is None:
            return JournalStorage(RepairingJournal(folder / JOURNAL))
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
