"""The journal outlives lines that were cut short; an address that does not answer is told without its password; what
this package uses of Optuna without its promise is where it was, and each failure names what moved."""

from __future__ import annotations

import errno
import inspect
import os
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from peftsweep.errors import ConfigError
from peftsweep.sweeps.execution.storage import (
    JOURNAL,
    RepairingJournal,
    forget_claimed_trial,
    open_storage,
    storage_id,
)


def add_trial(storage: BaseStorage) -> None:
    optuna.create_study(study_name="study", storage=storage, load_if_exists=True).add_trial(
        optuna.create_trial(value=0.5)
    )


def trials(storage: BaseStorage) -> int:
    return len(optuna.load_study(study_name="study", storage=storage).trials)


def tear(journal: Path, cut_bytes: int) -> None:
    """As a lost machine leaves it: the end of the last line is missing."""
    journal.write_bytes(journal.read_bytes()[:-cut_bytes])


@pytest.mark.parametrize("cut_bytes", [1, 7, 40])
def test_a_line_that_was_cut_short_is_dropped(tmp_path: Path, cut_bytes: int) -> None:
    first, second = open_storage(tmp_path, None), open_storage(tmp_path, None)
    add_trial(first)
    add_trial(first)
    tear(tmp_path / JOURNAL, cut_bytes)
    fresh = open_storage(tmp_path, None)
    assert trials(fresh) == 1
    add_trial(second)
    add_trial(fresh)
    assert [trials(storage) for storage in (second, fresh, open_storage(tmp_path, None))] == [3, 3, 3]


def test_a_torn_line_without_any_whole_one_is_dropped(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b'{"op_code": 0, "study')
    storage = open_storage(tmp_path, None)
    add_trial(storage)
    assert trials(open_storage(tmp_path, None)) == 1


def test_a_torn_line_longer_than_a_block_is_dropped(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, None)
    add_trial(storage)
    with (tmp_path / JOURNAL).open("ab") as stream:
        stream.write(b"x" * 200_000)
    add_trial(open_storage(tmp_path, None))
    assert trials(open_storage(tmp_path, None)) == 2


def test_optunas_own_journal_reads_a_mended_one(tmp_path: Path) -> None:
    add_trial(open_storage(tmp_path, None))
    with (tmp_path / JOURNAL).open("ab") as stream:
        stream.write(b'{"torn')
    add_trial(open_storage(tmp_path, None))
    assert trials(JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL)))) == 2


def test_two_objects_append_to_one_journal(tmp_path: Path) -> None:
    first, second = open_storage(tmp_path, None), open_storage(tmp_path, None)
    for storage in (first, second, first):
        add_trial(storage)
    assert trials(first) == trials(second) == 3


def test_a_full_disk_leaves_the_journal_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(tmp_path, None)
    add_trial(storage)
    before = (tmp_path / JOURNAL).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            add_trial(storage)
    assert (tmp_path / JOURNAL).read_bytes() == before
    add_trial(storage)
    assert trials(open_storage(tmp_path, None)) == 2


def test_a_writer_whose_lock_was_taken_from_it_writes_over_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found the end of the file, hung for longer than the others wait, and goes on."""
    import peftsweep.sweeps.execution.storage as module

    slow, fast = RepairingJournal(tmp_path / JOURNAL), RepairingJournal(tmp_path / JOURNAL)
    find_end = module._end_of_whole_lines

    def hang(stream: object, size: int) -> int:
        monkeypatch.setattr(module, "_end_of_whole_lines", find_end)
        found = find_end(stream, size)
        slow._file_lock.release()
        fast.append_logs([{"who": "fast"}])
        slow._file_lock.acquire()
        return found

    monkeypatch.setattr(module, "_end_of_whole_lines", hang)
    slow.append_logs([{"who": "slow"}])
    assert [log["who"] for log in slow.read_logs(0)] == ["fast", "slow"]


def test_sqlite_is_opened_where_it_does_not_exist(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, f"sqlite:///{tmp_path / 'a.db'}")
    add_trial(storage)
    assert trials(open_storage(tmp_path, f"sqlite:///{tmp_path / 'a.db'}")) == 1


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://bob:hunter22@127.0.0.1:1/studies", "127.0.0.1:1"),
        ("sqlite:////nowhere/bob:hunter22@studies.db", "nowhere"),
        ("nosuchdatabase://bob:hunter22@host/studies", "nosuchdatabase"),
        ("no address", "no address"),
    ],
)
def test_an_unreachable_storage_is_told_without_its_password(tmp_path: Path, url: str, named: str) -> None:
    with pytest.raises(ConfigError, match="must be reachable") as caught:
        open_storage(tmp_path, url)
    assert named in str(caught.value)
    assert "hunter22" not in str(caught.value) or url.startswith("sqlite")


def test_a_journal_in_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        open_storage(tmp_path / "nowhere", None)


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
