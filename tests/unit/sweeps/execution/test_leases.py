"""Who is alive: by process on this machine, by the age of a file on another."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from peftsweep.sweeps.execution.leases import WORKERS_FOLDER, Lease, LeaseFile, is_alive, living, read_lease

LEASE_SECONDS = 60.0


def write(path: Path, lease: Lease) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(lease)))
    return path


def aged(path: Path, seconds: float) -> Path:
    modified = path.stat().st_mtime - seconds
    os.utime(path, (modified, modified))
    return path


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def zombie() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()  # it has ended, and nobody has waited for it
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process
    process.wait()
    process.stdout.close()


def test_the_owner_of_a_lease_is_alive_however_old_the_file(tmp_path: Path) -> None:
    LeaseFile(tmp_path / "me.json", "me").refresh(now=True)
    assert is_alive(aged(tmp_path / "me.json", 1e6), LEASE_SECONDS)


def test_a_process_that_has_ended_is_not_alive(tmp_path: Path, dead_pid: int) -> None:
    assert not is_alive(write(tmp_path / "dead.json", replace(Lease("dead"), pid=dead_pid)), LEASE_SECONDS)


def test_a_process_that_nobody_waits_for_is_not_alive(tmp_path: Path, zombie: subprocess.Popen[bytes]) -> None:
    process = psutil.Process(zombie.pid)
    lease = replace(Lease("zombie"), pid=zombie.pid, created=process.create_time() - psutil.boot_time())
    assert not is_alive(write(tmp_path / "zombie.json", lease), LEASE_SECONDS)


def test_a_process_id_used_again_is_another_process(tmp_path: Path) -> None:
    lease = Lease("earlier")
    assert not is_alive(write(tmp_path / "x.json", replace(lease, created=lease.created - 5)), LEASE_SECONDS)


def test_a_clock_that_is_set_right_kills_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "me.json", Lease("me"))
    started, boot = psutil.Process().create_time(), psutil.boot_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: started + 3600)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 3600)
    assert is_alive(path, LEASE_SECONDS)


@pytest.mark.parametrize(("age", "alive"), [(1, True), (30, True), (90, False)])
def test_on_another_machine_the_age_of_the_file_counts(tmp_path: Path, age: float, alive: bool) -> None:
    lease = replace(Lease("far"), host=f"not-{socket.gethostname()}", pid=1, created=0)
    assert is_alive(aged(write(tmp_path / "far.json", lease), age), LEASE_SECONDS) is alive
    assert [path.name for path in tmp_path.iterdir()] == ["far.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"owner": "x", "from_the_future": 1}'])
def test_what_is_no_lease_is_nobodys(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert read_lease(path) is None
    assert not is_alive(path, LEASE_SECONDS)


def test_a_lease_that_is_not_there_is_nobodys(tmp_path: Path) -> None:
    assert not is_alive(tmp_path / "x.json", LEASE_SECONDS)


def test_the_living_are_found_by_name(tmp_path: Path, dead_pid: int) -> None:
    folder = tmp_path / WORKERS_FOLDER
    write(folder / "a.json", Lease("a"))
    write(folder / "b.json", replace(Lease("b"), pid=dead_pid))
    write(folder / "c.json", replace(Lease("c"), host="elsewhere"))
    assert list(living(tmp_path, LEASE_SECONDS)) == ["a", "c"]


def test_a_lease_says_what_its_owner_does(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path / "me.json", "me")
    file.refresh({"state": "running", "step": 3}, now=True)
    lease = read_lease(tmp_path / "me.json")
    assert lease is not None
    assert lease.doing == {"state": "running", "step": 3}
    file.remove()
    assert not is_alive(tmp_path / "me.json", LEASE_SECONDS)


def test_a_lease_is_not_rewritten_before_it_is_due(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path / "me.json", "me")
    file.refresh({"step": 1}, now=True)
    file.refresh({"step": 2})
    lease = read_lease(tmp_path / "me.json")
    assert lease is not None
    assert lease.doing == {"step": 1}


def test_a_folder_that_is_gone_does_not_end_its_worker(tmp_path: Path) -> None:
    file = LeaseFile(tmp_path / "workers" / "me.json", "me")
    (tmp_path / "workers").rmdir()
    file.refresh(now=True)
    file.remove()
