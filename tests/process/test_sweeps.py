"""Fair sweeps as real command lines on the embedded model: what they leave, what they print, how they go on."""

import json
import sys

import pytest

import peftsweep
from peftsweep.__main__ import main
from peftsweep.records.jobs import load_folder
from peftsweep.records.results import Stage
from peftsweep.report.analysis.groups import compare
from peftsweep.report.analysis.sentences import answer

pytestmark = pytest.mark.process

STUDIES = ("lora", "ia3")
SMALL = ["workers=1", "tracking=none"]
LOW, HIGH = 1e-6, 1e-5  # rates
TOKENS = 1000  # a little more than two whole trials
SETTINGS = {"hparams.lr", "method.capacity"}


@pytest.fixture(scope="module")
def from_python(tmp_path_factory, sweep_line):
    """Two studies of two trials each, confirmed with one seed, asked for by a Python program; where, and its table."""
    line = sweep_line(tmp_path_factory.mktemp("sweep"))
    overrides = ["method=lora,ia3", "tracking=none", *line.JOB]
    settings = {"name": "s", "n_trials": 2, "workers": 1, "confirm": {"seeds": 1, "default_seeds": 0}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(line.folder)
        for key, value in line.environment.items():
            patch.setenv(key, value)
        frame = peftsweep.sweep(*overrides, **settings)
    return line, frame


@pytest.fixture(scope="module")
def continued(from_python):
    """The same sweep with one trial more, as a command line; the folders there were before, and what it printed."""
    line, _ = from_python
    before = set(line.sweep.glob("*/*/result.json"))
    typed = [*line.FAIR, "method=lora,ia3", "confirm.seeds=1", "confirm.default_seeds=0", *SMALL, *line.JOB]
    return line, before, line.run(*typed, "n_trials=3")


@pytest.fixture
def in_process(monkeypatch, capfd):
    """Run a command line that starts nothing in a folder; its exit code and what it printed, on one line."""

    def run(folder, arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["peftsweep"])
        monkeypatch.setenv("COLUMNS", "1000")
        capfd.readouterr()
        code = main(arguments)
        return code, " ".join(capfd.readouterr().out.split())

    return run


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_python_gets_a_row_for_each_study(from_python):
    _, frame = from_python
    assert set(frame["study"]) == set(STUDIES)
    assert list(frame["trials"]) == [2, 2]
    assert frame[["objective", "score", "score_low", "score_high", "hparams.lr"]].notna().all(axis=None)


def test_every_trial_has_a_folder_of_its_own_with_all_that_a_job_leaves(from_python):
    line, _ = from_python
    for study in STUDIES:
        for number in ("0000", "0001"):
            folder = line.sweep / study / number
            for name in (".hydra/config.yaml", ".hydra/overrides.yaml", "config.yaml", "job.log", "history.jsonl"):
                assert (folder / name).exists(), folder / name
            assert result(folder)["stage"] == "tune"
            assert result(folder)["study"] == f"s/{study}"


def test_the_first_trial_of_a_study_is_the_published_default(from_python):
    line, _ = from_python
    for study in STUDIES:
        first = line.tickets(study)[0]
        assert first.params == {dimension.key: dimension.default for dimension in line.spec().study(study).space}


def test_trials_know_nothing_of_test_data_and_confirm_jobs_do(from_python):
    line, _ = from_python
    for path in line.sweep.glob("*/*/result.json"):
        found = result(path.parent)
        tested = [key for key in found["metrics"] if key.startswith("test/")]
        splits = {info["split"] for info in found["datasets"]}
        assert (bool(tested), "test" in splits) == ((True, True) if found["stage"] == "confirm" else (False, False))
        assert (path.parent / "predictions.jsonl").exists() == (found["stage"] == "confirm")


def test_confirm_jobs_use_seeds_that_tuning_did_not(from_python):
    line, _ = from_python
    seeds = {"tune": set(), "confirm": set()}
    for path in line.sweep.glob("*/*/result.json"):
        found = result(path.parent)
        seeds[found["stage"]].add(found["seed"])
    assert seeds["confirm"]
    assert seeds["tune"].isdisjoint(seeds["confirm"])


def test_a_confirm_job_has_the_best_settings(from_python):
    line, _ = from_python
    for study in STUDIES:
        best = min((trial for trial in line.tickets(study) if trial.value is not None), key=lambda trial: trial.value)
        (confirmed,) = [t for t in line.tickets(study, Stage.CONFIRM) if t.terms.role == "best"]
        assert confirmed.params == best.params
        job = (line.sweep / study / "best-seed-1/config.yaml").read_text()
        assert f"lr: {best.params['hparams.lr']}" in job


def test_a_warm_child_loads_the_base_and_tokenises_the_data_once(from_python):
    """One worker's tuning: a child, however many trials of whatever method it runs. A confirm job has its own."""
    line, _ = from_python
    trials, confirm = (
        [path.read_text() for path in line.sweep.glob(f"*/{name}/job.log")] for name in ("0*", "*-seed-*")
    )
    assert len(trials) == 4
    assert sum("Loaded pocket-llama" in log for log in trials) == 1
    assert all("Loaded pocket-llama" in log for log in confirm)
    assert sum(log.count("Tokenised") for log in [*trials, *confirm]) == 3  # training, validation, test


@pytest.mark.slow
def test_one_more_trial_is_exactly_one_more(continued):
    line, before, _ = continued
    added = set(line.sweep.glob("*/*/result.json")) - before
    assert {result(path.parent)["stage"] for path in added} >= {"tune"}
    for study in STUDIES:
        assert [trial.number for trial in line.tickets(study)] == [0, 1, 2]
        assert all(trial.is_finished for trial in line.tickets(study))
        assert sum(path.parent.parent.name == study for path in added if path.parent.name.isdigit()) == 1


@pytest.mark.slow
def test_the_table_is_printed_and_kept(continued):
    line, _, printed = continued
    for study, row in line.table().items():
        assert study in printed
        assert (row["trials"], row["failed"], row["seeds"]) == (3, 0, 1)
        assert f"{row['objective']:.4f}" in printed
        assert row["best"].keys() <= SETTINGS
    for word in ("95% interval", "default", "pruned", "oom", "failed", "test/", "accuracy"):
        assert word in printed


@pytest.mark.slow
def test_the_verdict_is_printed_in_the_words_of_the_report(continued):
    line, _, printed = continued
    told = answer(compare(load_folder(line.sweep)).groups[0])
    assert all(sentence in printed for sentence in (told.headline, *told.details))


@pytest.mark.slow
def test_the_log_tells_what_happened(continued):
    line, _, _ = continued
    log = (line.sweep / "sweep.log").read_text()
    assert log.count("Begun: python -m peftsweep -m hydra/sweeper=fair") == 2
    for study in STUDIES:
        assert all(log.count(f"{study} tune {number}/") for number in (1, 2, 3))
        assert f"{study} confirm 1/1, best settings" in log


@pytest.mark.slow
def test_how_to_go_on_join_and_look_is_printed(continued):
    line, _, printed = continued
    assert "go on     python -m peftsweep -m hydra/sweeper=fair" in printed
    assert f"join      python -m peftsweep worker {line.sweep}" in printed
    assert f"optuna-dashboard {line.sweep}/study.journal" in printed
    assert f"report  python -m peftsweep report sweep={line.sweep.name}" in printed


@pytest.mark.slow
def test_a_finished_sweep_has_nothing_to_do(continued):
    line, _, _ = continued
    before = {path: path.stat().st_mtime_ns for path in line.sweep.rglob("result.json")}
    line.run(
        *line.FAIR, "method=lora,ia3", "confirm.seeds=1", "confirm.default_seeds=0", *SMALL, *line.JOB, "n_trials=3"
    )
    assert {path: path.stat().st_mtime_ns for path in line.sweep.rglob("result.json")} == before


@pytest.mark.slow
def test_a_new_sweep_of_the_same_name_gets_a_folder_of_its_own(continued, in_process):
    line, _, _ = continued
    typed = [*line.FAIR, "method=lora,ia3", *SMALL, *line.JOB, "if_exists=new", "dry_run=true"]
    code, printed = in_process(line.folder, typed)
    assert code == 0
    assert f"folder {line.sweep}-2" in printed
    assert not line.sweep.with_name("s-2").exists()


@pytest.fixture(scope="module")
def widened(tmp_path_factory, sweep_line):
    """A study that pays with tokens, in a range where nothing is learned yet: its upper end is best."""
    line = sweep_line(tmp_path_factory.mktemp("widened"))
    budget = [f"hparams.lr=interval({LOW},{HIGH})", f"budget.tokens={TOKENS}", "extend=true"]
    line.run(*line.FAIR, "method=ia3", "confirm.seeds=0", *SMALL, *line.JOB, *budget)
    return line


@pytest.mark.slow
def test_a_range_whose_end_is_best_is_widened(widened):
    study = widened.spec().study("ia3")
    (dimension,), (asked,) = study.space, study.asked_space
    assert (asked.low, asked.high) == (LOW, HIGH)
    assert dimension.low < LOW or dimension.high > HIGH
    rates = [trial.params["hparams.lr"] for trial in widened.tickets("ia3")]
    assert len(rates) > 1
    assert all(dimension.low <= rate <= dimension.high for rate in rates)


@pytest.mark.slow
def test_a_budget_of_tokens_is_met(widened):
    """By as many trials as it takes; what is left over would not pay for a whole one."""
    trials, budget = widened.tickets("ia3"), widened.spec().tokens
    spent = [trial.outcome.tokens for trial in trials]
    step = max(trial.outcome.tokens / trial.outcome.steps for trial in trials)
    whole = max(trial.outcome.tokens for trial in trials if trial.value is not None)
    assert budget > TOKENS
    assert budget - whole < sum(spent) < budget + 1.5 * step  # rows, and so steps, are of differing length
    assert widened.table()["ia3"]["tokens"] == sum(spent)


def test_a_plain_grid_stays_hydras(tmp_path, in_process):
    code, printed = in_process(tmp_path, ["--cfg", "hydra", "--package", "hydra.sweeper", "method=lora"])
    assert code == 0
    assert "BasicSweeper" in printed
