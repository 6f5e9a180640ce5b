"""What this package uses of Optuna without its promise is where it was; each failure names what moved."""

from __future__ import annotations

import inspect
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from peftsweep.sweeps.execution.optuna_internals import RepairingJournal, forget_claimed_trial, storage_id
from peftsweep.sweeps.execution.storage import open_storage


@pytest.fixture
def storage(tmp_path: Path) -> JournalStorage:
    found = open_storage(tmp_path, None)
    assert isinstance(found, JournalStorage)
    return found


@pytest.fixture
def waiting(storage: JournalStorage) -> FrozenTrial:
    study = optuna.create_study(storage=storage, study_name="monday/lora")
    study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING))
    return study.trials[0]


def test_a_frozen_trial_knows_its_key_in_the_storage(storage: JournalStorage, waiting: FrozenTrial) -> None:
    assert storage.get_trial(storage_id(waiting)).number == waiting.number, "FrozenTrial._trial_id"


def test_the_journal_remembers_the_trial_that_was_claimed_last(storage: JournalStorage, waiting: FrozenTrial) -> None:
    storage.set_trial_state_values(storage_id(waiting), TrialState.RUNNING)
    owned = storage._replay_result._worker_id_to_owned_trial_id
    assert storage._replay_result.worker_id in owned, "JournalStorage._replay_result._worker_id_to_owned_trial_id"
    forget_claimed_trial(storage)
    assert storage._replay_result.worker_id not in owned


def test_a_claim_that_is_forgotten_is_not_answered_as_won(storage: JournalStorage, waiting: FrozenTrial) -> None:
    """Without forgetting, Optuna says yes to whoever claimed a trial last, while somebody else runs it."""
    storage.set_trial_state_values(storage_id(waiting), TrialState.RUNNING)
    forget_claimed_trial(storage)
    assert not storage.set_trial_state_values(storage_id(waiting), TrialState.RUNNING)


def test_a_journal_file_reads_what_this_package_writes_and_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    theirs, ours = JournalFileBackend(str(path)), RepairingJournal(path)
    theirs.append_logs([{"op_code": 0}])
    ours.append_logs([{"op_code": 1}])
    for journal in (theirs, ours):
        assert list(journal.read_logs(0)) == [{"op_code": 0}, {"op_code": 1}], "lines of JournalFileBackend"


def test_a_journal_file_takes_the_lock_that_it_is_given() -> None:
    assert "lock_obj" in inspect.signature(JournalFileBackend.__init__).parameters, "JournalFileBackend(lock_obj=)"
    assert "grace_period" in inspect.signature(JournalFileOpenLock.__init__).parameters, "grace_period"
