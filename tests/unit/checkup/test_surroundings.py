"""What is found of the surroundings: real servers and files, where they can be had."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from peftsweep.checkup import surroundings
from peftsweep.checkup.findings import Finding, Mark, verdict
from peftsweep.checkup.surroundings import find_folders, find_hub, find_launchers, find_tracking, find_versions
from peftsweep.config.schema import TrackingConfig


@pytest.fixture
def closed_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that answers, as the hub does to who asks for nothing, that nothing is there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    class Nothing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_is_installed_here_is_what_is_tested() -> None:
    (found,) = find_versions()
    assert found.mark is Mark.OK
    assert "torch" in found.said


def test_a_package_outside_its_tested_range_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        surroundings, "requires", lambda name: ["peft>=99", "nothing-of-that-name>=1", 'x>=9; extra == "y"']
    )
    told = [found.said for found in find_versions() if found.mark is Mark.HEED]
    assert len(told) == 2
    assert told[0].endswith("tested is >=99")
    assert told[1].startswith("nothing-of-that-name none")


@pytest.mark.parametrize(("token", "mark"), [("secret", Mark.OK), (None, Mark.HEED)])
def test_a_hub_that_answers_wants_a_token(
    token: str | None, mark: Mark, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    (found,) = find_hub(hub)
    assert found.mark is mark
    assert "secret" not in found.said + found.fix


def test_without_a_network_only_what_is_here_can_be_used(hub: str, closed_address: str) -> None:
    (found,) = find_hub(closed_address)
    assert found.mark is Mark.HEED
    assert "does not answer" in found.said


def test_mlflow_that_is_not_there_is_a_fault(closed_address: str) -> None:
    (found,) = find_tracking(TrackingConfig("mlflow", uri=closed_address))
    assert found.mark is Mark.FAULT
    assert found.fix


def test_a_database_that_is_none_is_a_fault_and_one_that_is_still_to_be_made_is_not(tmp_path: Path) -> None:
    text = tmp_path / "mlflow.db"
    text.write_text("nothing of the kind")
    (broken,) = find_tracking(TrackingConfig("mlflow", uri=f"sqlite:///{text}"))
    (absent,) = find_tracking(TrackingConfig("mlflow", uri=f"sqlite:///{tmp_path}/other.db"))
    assert (broken.mark, absent.mark) == (Mark.FAULT, Mark.OK)
    assert not (tmp_path / "other.db").exists()


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    marks = {found.about: found.mark for found in find_folders(tmp_path / "file" / "outputs", tmp_path / "new")}
    assert (marks["outputs"], marks["cache"]) == (Mark.FAULT, Mark.OK)
    assert not (tmp_path / "new").exists()


def test_a_disk_that_is_nearly_full_is_to_be_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "SCARCE_DISK_BYTES", 2**70)
    assert {found.mark for found in find_folders(tmp_path, tmp_path)} == {Mark.HEED}


def test_launchers_that_are_installed_are_named_and_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    (found,) = find_launchers()
    assert found.said == "local, joblib, submitit_slurm (without sbatch here)"


@pytest.mark.parametrize(
    ("marks", "said"),
    [
        (["ok"], "Ready."),
        (["ok", "heed", "heed"], "Ready, with 2 things to heed."),
        (["heed", "fault"], "Jobs will fail here: 1 fault to mend."),
    ],
)
def test_findings_come_to_a_sentence(marks: list[str], said: str) -> None:
    assert verdict([Finding("any", Mark(mark), "") for mark in marks]) == said
