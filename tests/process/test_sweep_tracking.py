"""MLflow, storage and folders agree about a sweep that was killed again and again, and about one that MLflow missed."""

import contextlib
import json
import os
import random
import signal
import sqlite3

import pytest

from peftsweep.records.results import Stage
from tests.process.conftest import lives

pytestmark = [pytest.mark.process, pytest.mark.slow]

STUDIES = ("lora", "ia3")
DEADLINE_SECONDS = 300.0
TRIALS = 6  # of each study
ENDED_WELL = {"ok", "pruned"}
DATABASE = "outputs/mlflow.db"


def runs_of(line, study, stage):
    """MLflow's runs of a study: (run id, MLflow's status, ours)."""
    query = """
        select r.run_uuid, r.status, status.value from runs r
        join tags parent on parent.run_uuid = r.run_uuid and parent.key = 'mlflow.parentRunId'
        join tags study on study.run_uuid = parent.value and study.key = 'peftsweep.study' and study.value = ?
        join tags stage on stage.run_uuid = r.run_uuid and stage.key = 'peftsweep.stage' and stage.value = ?
        left join tags status on status.run_uuid = r.run_uuid and status.key = 'peftsweep.status'
    """
    with contextlib.closing(sqlite3.connect(line.folder / DATABASE)) as database:
        return database.execute(query, (f"s/{study}", str(stage))).fetchall()


def run_statuses(line):
    with contextlib.closing(sqlite3.connect(line.folder / DATABASE)) as database:
        return {status for (status,) in database.execute("select status from runs")}


def tuned_params(folder):
    """What a job was told of its searched settings."""
    text = (folder / ".hydra/overrides.yaml").read_text()
    return sorted(row for row in text.splitlines() if "hparams.lr=" in row or "method.capacity=" in row)


@pytest.fixture(scope="module")
def battered(tmp_path_factory, sweep_line):
    """2 workers, 12 trials: one worker is killed twice at random moments, then the sweep is ended by SIGTERM, and the
    command is run again. The sweep, the killed processes, and what was printed."""
    line, chance = sweep_line(tmp_path_factory.mktemp("battered")), random.Random(0)
    command = [*line.FAIR, "method=lora,ia3", *line.JOB, f"n_trials={TRIALS}", "workers=2", "confirm.seeds=1"]
    first, killed = line.start(*command), []

    def victim(finished):
        """The worker of slot 0 while it runs a trial, sooner or later after so many are finished."""
        worker = line.busy_worker(slot=0) if line.finished(*STUDIES) >= finished else None
        return worker if worker and worker.pid not in killed and chance.random() < 0.2 else None

    for finished in (chance.randint(1, 3), chance.randint(4, 6)):
        worker = line.wait(lambda finished=finished: victim(finished), first)
        child = line.child_pid(worker)
        os.kill(worker.pid, signal.SIGKILL)
        killed.append(worker.pid)
        line.wait(lambda child=child: child is None or not lives(child), first)
    wanted = line.finished(*STUDIES) + 1
    line.wait(lambda: line.finished(*STUDIES) >= wanted and line.busy_worker(slot=1), first)
    first.send_signal(signal.SIGTERM)
    printed = first.communicate(timeout=DEADLINE_SECONDS)[0]
    seen = {"code": first.returncode, "printed": printed, "finished": line.finished(*STUDIES)}
    seen["states"] = {trial.state.name for study in STUDIES for trial in line.tickets(study)}
    seen["statuses"] = run_statuses(line)
    line.run(*command)
    return line, seen


def test_sigterm_ends_a_sweep_and_tells_how_to_go_on(battered):
    _, seen = battered
    assert seen["code"] == 130
    assert "go on   python -m peftsweep -m hydra/sweeper=fair" in seen["printed"]
    assert "Traceback" not in seen["printed"]
    assert 0 < seen["finished"] < len(STUDIES) * TRIALS


def test_nothing_counts_as_running_after_it(battered):
    _, seen = battered
    assert "RUNNING" not in seen["states"]
    assert "RUNNING" not in seen["statuses"]


def test_killed_workers_are_told_and_replaced(battered):
    _, seen = battered
    assert seen["printed"].count("A worker died (signal 9)") == 2
    assert seen["printed"].count("is gone. It is run again.") <= 2


def test_every_trial_is_finished_exactly_once(battered):
    line, _ = battered
    for study in STUDIES:
        trials = line.tickets(study)
        assert [trial.number for trial in trials] == list(range(TRIALS))
        assert {str(trial.outcome.status) for trial in trials} <= ENDED_WELL
        assert len({trial.outcome.folder for trial in trials}) == TRIALS
    row = line.table()["lora"]
    assert (row["trials"], row["failed"]) == (TRIALS, 0)


def test_folders_agree(battered):
    line, _ = battered
    for study in STUDIES:
        found = [json.loads(path.read_text()) for path in line.sweep.glob(f"{study}/[0-9]*/result.json")]
        assert sum(result["status"] in ENDED_WELL for result in found) == TRIALS


def test_mlflow_agrees(battered):
    line, _ = battered
    for study in STUDIES:
        runs = runs_of(line, study, Stage.TUNE)
        good = {run for run, _, status in runs if status in ENDED_WELL}
        assert good == {trial.outcome.mlflow_run_id for trial in line.tickets(study)}
        assert len(good) == TRIALS
        assert {status for run, status, _ in runs if run not in good} <= {"FAILED", "KILLED"}
    assert "RUNNING" not in run_statuses(line)


def test_a_trial_is_run_again_with_the_same_settings(battered):
    line, _ = battered
    again = [path for study in STUDIES for path in line.sweep.glob(f"{study}/[0-9]*-attempt-2/.hydra/overrides.yaml")]
    assert again
    for path in again:
        second = path.parent.parent
        before = second.with_name(second.name.partition("-")[0])
        if (before / ".hydra").exists():  # else it was killed before it had settings
            assert tuned_params(before) == tuned_params(second)


def test_confirm_jobs_are_complete(battered):
    line, _ = battered
    for study in STUDIES:
        confirmed = line.tickets(study, Stage.CONFIRM)
        assert {trial.terms.role for trial in confirmed} >= {"best"}
        assert {str(trial.outcome.status) for trial in confirmed} == {"ok"}
        runs = runs_of(line, study, Stage.CONFIRM)
        assert {run for run, status, _ in runs if status == "FINISHED"} == {t.outcome.mlflow_run_id for t in confirmed}
        assert line.table()[study]["score"] is not None


@pytest.fixture(scope="module")
def mlflow_away(tmp_path_factory, sweep_line):
    """A sweep while MLflow does not answer, imported afterwards."""
    line = sweep_line(tmp_path_factory.mktemp("away"))
    away = ["tracking.uri=http://127.0.0.1:9", "n_trials=2", "workers=1", "confirm.seeds=0"]
    printed = line.run(*line.FAIR, "method=ia3", *line.JOB, *away)
    return line, printed, line.run("import", str(line.sweep), "--uri", f"sqlite:///{line.folder}/{DATABASE}")


def test_a_sweep_goes_on_without_mlflow(mlflow_away):
    line, printed, _ = mlflow_away
    row = line.table()["ia3"]
    assert (row["trials"], row["failed"]) == (2, 0)
    assert "The sweep goes on without MLflow" in " ".join(printed.split())


def test_import_nests_the_jobs_under_their_study(mlflow_away):
    line, _, _ = mlflow_away
    runs = runs_of(line, "ia3", Stage.TUNE)
    assert len(runs) == 2
    assert {status for *_, status in runs} <= ENDED_WELL
    assert "RUNNING" not in run_statuses(line)
