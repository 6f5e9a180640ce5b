"""`peftsweep report`: what it prints, what it writes, and what it says to a wrong question."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from job_writer import write_job, write_sweep

from peftsweep.commands.write_report import run
from peftsweep.errors import ConfigError, DataError
from peftsweep.records.results import Status
from peftsweep.report.analysis.groups import compare
from peftsweep.report.sources import load_jobs
from peftsweep.report.tables import MOST_PRINTED, to_csv, to_markdown

GOOD, FAIR, BAD = [1] * 18 + [0] * 2, [1] * 17 + [0] * 3, [0] * 18 + [1] * 2


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has tests of its own."""
    monkeypatch.setattr("peftsweep.report.page.write.write_page", lambda *found: found[-1])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def sweep(place: Path) -> Path:
    studies = {"a": {1: BAD, 2: BAD}, "b": {1: GOOD, 2: GOOD}, "c": {1: FAIR, 2: GOOD}}
    return write_sweep(place / "outputs" / "sweeps" / "monday", studies)


@pytest.mark.usefixtures("sweep")
def test_the_last_sweep_is_reported_and_written_down(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert run([]) == 0
    printed = capsys.readouterr().out
    assert "metamath on pocket-llama: tuned and confirmed, 100 steps of 8 rows" in printed
    assert "Undecided: b has the highest accuracy, but c is not told apart from it; a is behind." in printed
    folder = place / "outputs" / "reports" / "monday"
    assert sorted(path.name for path in folder.iterdir()) == ["comparison.json", "table.csv", "table.md"]


def test_the_later_of_two_sweeps_is_the_last(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = write_sweep(sweep.parent / "tuesday", {"z": {1: GOOD}})
    os.utime(sweep / "sweep.json", (1, 1))
    os.utime(later / "sweep.json", (2, 2))
    run([])
    assert "reports/tuesday" in capsys.readouterr().out


@pytest.mark.usefixtures("sweep")
def test_a_sweep_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep=monday", "folder=here"]) == 0
    assert Path("here/table.csv").exists()
    run(["sweep=mon"])
    assert Path("outputs/reports/monday/table.csv").exists()
    with pytest.raises(DataError, match=r"mnday.*Did you mean monday"):
        run(["sweep=mnday"])


@pytest.mark.usefixtures("sweep")
def test_the_csv_has_the_numbers_in_their_own_units() -> None:
    run([])
    with Path("outputs/reports/monday/table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == ["b", "c", "a"]
    assert float(rows[0]["score"]) == 0.9
    assert float(rows[0]["memory/train_peak_reserved_bytes"]) == 12e9
    assert rows[0]["trials_ok"] == "3"
    assert rows[0]["hparams.lr"] == "0.001"


@pytest.mark.usefixtures("sweep")
def test_all_that_is_told_is_there_as_json() -> None:
    run([])
    content = json.loads(Path("outputs/reports/monday/comparison.json").read_text())
    assert [row["place"] for row in content["groups"][0]["rows"]] == [1, 2, 3]


def test_what_was_not_measured_is_empty_and_has_no_column(tmp_path: Path) -> None:
    write_job(tmp_path / "a", "lora", metrics={"drift": 0.1})
    write_job(tmp_path / "b", "oft")
    found = compare(load_jobs(tmp_path))
    assert "energy" not in to_markdown(found)
    rows = list(csv.DictReader(to_csv(found).splitlines()))
    assert [row["drift"] for row in sorted(rows, key=lambda row: row["name"])] == ["0.1", ""]


def test_a_bar_in_a_setting_breaks_no_markdown_table(tmp_path: Path) -> None:
    write_job(tmp_path / "a", "lo|ra")
    lines = [line for line in to_markdown(compare(load_jobs(tmp_path))).splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_warnings_stand_under_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_job(tmp_path / "a", "lora", environment={"torch": "1.0"})
    write_job(tmp_path / "b", "oft", environment={"torch": "2.0"})
    write_job(tmp_path / "c", "oft", task_version=2)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "result.json").write_text("{")
    run([f"runs={tmp_path}", f"folder={tmp_path}"])
    printed = capsys.readouterr().out
    assert "torch of the environment. 1.0 (lora); 2.0 (oft)." in printed
    assert "2 groups are not ranked together" in printed
    assert "left out: result.json must be valid JSON" in printed


def test_the_markdown_begins_with_the_verdict(sweep: Path) -> None:
    lines = to_markdown(compare(load_jobs(sweep))).splitlines()
    assert lines[2] == "**Undecided: b has the highest accuracy, but c is not told apart from it; a is behind.**"


def test_every_seed_is_told_as_csv_and_in_the_tables(sweep: Path) -> None:
    found = compare(load_jobs(sweep))
    rows = list(csv.DictReader(to_csv(found).splitlines()))
    assert [row["seed_scores"] for row in rows] == ["0.9 0.9", "0.85 0.9", "0.1 0.1"]
    assert "| 85.0 90.0 |" in to_markdown(found)


def test_only_failed_runs_are_reported_with_their_causes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_job(tmp_path / "a", items=None, status=Status.FAILED, cause="no such [layer]")
    assert run([f"runs={tmp_path}", f"folder={tmp_path / 'report'}"]) == 0
    printed = capsys.readouterr().out
    assert "1 x failed: no such [layer]" in printed
    assert "No job was scored on test data: 1 failed." in printed


def test_a_long_table_is_cut_and_says_where_the_rest_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(MOST_PRINTED + 5):
        write_job(tmp_path / str(number), f"m{number:03}")
        write_job(tmp_path / f"{number}-failed", status=Status.FAILED, cause=f"why {number}")
    assert run([f"runs={tmp_path}", f"folder={tmp_path / 'report'}"]) == 0
    printed = capsys.readouterr().out
    assert "... and 5 more rows, in table.csv." in printed
    assert "... and 5 more, in comparison.json." in printed
    assert len((tmp_path / "report" / "table.csv").read_text().splitlines()) == MOST_PRINTED + 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x=memry"], "Did you mean memory"),
        (["swep=monday"], "Did you mean sweep"),
        (["monday"], "must be written key=value"),
        (["sweep="], "must be written key=value"),
        (["x=memory", "x=time"], "given once"),
        (["sweep=monday", "runs=outputs"], "only one of"),
    ],
)
@pytest.mark.usefixtures("sweep")
def test_wrong_words(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(words)


@pytest.mark.usefixtures("sweep")
def test_a_metric_that_was_asked_for_and_not_measured() -> None:
    with pytest.raises(DataError, match="drift must have been measured"):
        run(["x=drift"])


def test_nothing_to_report(place: Path) -> None:
    with pytest.raises(DataError, match="no folder outputs/ here"):
        run([])
    (place / "outputs").mkdir()
    with pytest.raises(DataError, match="at least one finished job"):
        run([])


def test_the_page_is_given_all_that_was_found(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def page(*given: object) -> Path:
        seen.extend(given)
        return Path("index.html")

    monkeypatch.setattr("peftsweep.report.page.write.write_page", page)
    run([f"runs={sweep}", "x=memory", "y=time"])
    loaded, comparison, frontiers, folder = seen
    assert len(loaded.jobs) == 15
    assert comparison.groups[0].rows[0].name == "b"
    assert frontiers[0].metrics == ("memory/train_peak_reserved_bytes", "time/train_seconds")
    assert folder == Path("outputs/reports/monday")


def test_a_report_of_folders_imports_no_torch_and_no_mlflow(sweep: Path) -> None:
    code = "import sys; from peftsweep.commands.write_report import run; run([*sys.argv[1:], 'log=false']); "
    code += "print('imported:', *sorted(set(sys.modules) & {'torch', 'mlflow', 'transformers', 'peft', 'optuna'}))"
    arguments = [f"runs={sweep}", f"folder={sweep}"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"
