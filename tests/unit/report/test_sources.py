"""Whose MLflow runs a report belongs to, and what the command does with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from job_writer import write_job, write_sweep

from peftsweep.commands.write_report import run
from peftsweep.errors import ConfigError
from peftsweep.report.sources import Destination, find_destination, load_jobs

METHODS = {"a": {1: [1, 0]}, "b": {1: [1, 1]}}
STUDIES = {f"monday/{method}": {"method": method, "model": "pocket-llama", "task": "metamath"} for method in "ab"}


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_sweep(tmp_path / "outputs" / "sweeps" / "monday", METHODS)


def destination(folder: Path) -> Destination | None:
    return find_destination(load_jobs(folder), str(folder))


def test_a_sweeps_report_belongs_to_its_studies(sweep: Path) -> None:
    assert destination(sweep) == Destination(STUDIES, None)
    assert destination(sweep.parents[1]) == Destination(STUDIES, None)


def test_the_store_is_the_one_that_the_jobs_were_tracked_in(sweep: Path) -> None:
    write_sweep(sweep, METHODS, config={"tracking": {"enabled": True, "uri": "http://host:5000"}})
    found = destination(sweep)
    assert found is not None
    assert found.uri == "http://host:5000"


@pytest.mark.parametrize(
    ("source", "uri"), [("http://host:5000", "http://host:5000"), ("some/runs.db", "sqlite:///some/runs.db")]
)
def test_what_was_read_from_a_store_is_logged_there(sweep: Path, source: str, uri: str) -> None:
    found = find_destination(load_jobs(sweep), source)
    assert found is not None
    assert found.uri == uri


def test_a_part_of_a_sweep_belongs_nowhere(sweep: Path) -> None:
    assert destination(sweep / "a") is None


def test_several_sweeps_belong_nowhere(sweep: Path) -> None:
    write_sweep(sweep.parent / "tuesday", {"a": {1: [1, 0]}})
    assert destination(sweep.parent) is None


def test_a_sweep_beside_a_single_job_belongs_nowhere(sweep: Path) -> None:
    write_job(sweep.parents[1] / "single")
    assert destination(sweep.parents[1]) is None


def test_a_sweep_that_was_not_tracked_belongs_nowhere(sweep: Path) -> None:
    write_sweep(sweep, METHODS, config={"tracking": {"enabled": False}})
    assert destination(sweep) is None


class Log:
    """Notes what it was given, and answers what it did."""

    def __init__(self, answer: str | None = "done") -> None:
        self.answer = answer
        self.given: list[tuple[Path, Mapping[str, Mapping[str, str]], str | None]] = []

    def __call__(self, folder: Path, studies: Mapping[str, Mapping[str, str]], uri: str | None) -> str | None:
        assert (folder / "table.csv").exists()
        self.given.append((folder, studies, uri))
        return self.answer


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """In place of MLflow; the page has tests of its own."""
    log = Log()
    monkeypatch.setattr("peftsweep.tracking.reports.log_report", log)
    monkeypatch.setattr("peftsweep.report.page.write.write_page", lambda *found: found[-1])
    return log


@pytest.mark.usefixtures("sweep")
def test_the_command_logs_what_it_has_written_and_says_so(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    run(["log=true"])
    run([])
    assert log.given == [(Path("outputs/reports/monday"), STUDIES, None)] * 2
    assert capsys.readouterr().out.endswith("mlflow  done\n")


@pytest.mark.usefixtures("sweep")
def test_nothing_is_said_where_nothing_was_logged(log: Log, capsys: pytest.CaptureFixture[str], sweep: Path) -> None:
    log.answer = None
    run([])
    log.given.clear()
    run([f"runs={sweep / 'a'}"])
    assert log.given == []
    assert "mlflow" not in capsys.readouterr().out


@pytest.mark.usefixtures("sweep")
def test_logging_can_be_left_out(log: Log) -> None:
    run(["log=false"])
    assert log.given == []
    with pytest.raises(ConfigError, match="log must be true or false, got 'no'"):
        run(["log=no"])


def test_help_names_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["--help"])
    assert "log=false" in capsys.readouterr().out
