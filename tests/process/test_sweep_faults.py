"""What can go wrong while a sweep runs: whatever is killed, hangs or is torn, each trial is finished exactly once."""

import json
import os
import shutil
import signal
import subprocess

import pytest

from peftsweep.modalities.text.pocket import LLAMA_FOLDER
from peftsweep.records.results import Stage
from peftsweep.sweeps.execution.trial_process import TrialProcess, TrialRequest
from peftsweep.sweeps.protocol.trials import Ending
from tests.process.conftest import lives

pytestmark = pytest.mark.process

DEADLINE_SECONDS = 300.0


@pytest.fixture(scope="module")
def stopped_often(tmp_path_factory, sweep_line):
    """One study of 6 trials that meets every kind of stop, one after the other; what was seen after each."""
    line = sweep_line(tmp_path_factory.mktemp("stopped"))
    command = [*line.FAIR, "method=ia3", "tracking=none", *line.JOB, "n_trials=6", "workers=1", "confirm.seeds=0"]
    seen = {}

    running = line.start(*command)
    worker = line.wait(lambda: line.busy_worker(), running)
    os.kill(line.child_pid(worker), signal.SIGKILL)  # the child alone
    line.wait(lambda: line.finished("ia3") >= 1, running)
    seen["after the child's death"] = (line.tickets("ia3")[0], list(line.workers().values()), worker)
    line.wait(lambda: line.busy_worker(), running)
    running.send_signal(signal.SIGINT)  # finish what runs
    seen["ctrl-c"] = (running.communicate(timeout=DEADLINE_SECONDS)[0], running.returncode, line.tickets("ia3"))

    with (line.sweep / "study.journal").open("ab") as stream:
        stream.write(b'{"op_code": 6, "worker_id": "torn')

    running = line.start(*command)
    worker = line.wait(lambda: line.busy_worker(), running)
    running.send_signal(signal.SIGINT)
    line.wait(lambda: (line.sweep / "stop").exists(), running)
    running.send_signal(signal.SIGINT)  # now
    seen["two ctrl-c"] = (
        running.communicate(timeout=DEADLINE_SECONDS)[0],
        running.returncode,
        line.tickets("ia3"),
        worker,
    )

    running = line.start(*command)
    worker = line.wait(lambda: line.busy_worker(), running)
    child = line.child_pid(worker)
    running.kill()  # the controller alone; not waited for, as a parent that is busy would not
    helper = line.start("worker", str(line.sweep))
    line.wait(lambda: not lives(worker.pid) and not (child and lives(child)))
    seen["controller killed"] = (line.tickets("ia3"), worker)
    running.communicate()

    helper.communicate(timeout=DEADLINE_SECONDS)
    seen["joined"] = (helper.returncode, line.tickets("ia3"))
    seen["last"] = line.run(*command)
    return line, seen


@pytest.mark.slow
def test_a_killed_child_costs_its_worker_nothing(stopped_often):
    _, seen = stopped_often
    trial, workers, worker = seen["after the child's death"]
    assert (trial.number, trial.attempts, trial.is_result) == (0, 1, True)
    assert trial.params == trial.terms.params
    assert [lease.pid for lease in workers] == [worker.pid]


@pytest.mark.slow
def test_the_first_ctrl_c_finishes_what_runs(stopped_often):
    _, seen = stopped_often
    printed, code, trials = seen["ctrl-c"]
    assert code == 130
    assert "what runs is finished first" in printed
    assert "Traceback" not in printed
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED", "WAITING"}
    assert trials[-1].state.name == "WAITING"


@pytest.mark.slow
def test_the_second_ctrl_c_stops_now_at_no_cost(stopped_often):
    _, seen = stopped_often
    printed, code, trials, worker = seen["two ctrl-c"]
    assert code == 130
    assert "Stopping now" in printed
    assert "Traceback" not in printed
    stopped = trials[worker.doing["number"]]
    assert stopped.state.name == "WAITING"
    assert stopped.attempts == 0


@pytest.mark.slow
def test_workers_of_a_killed_controller_finish_what_they_run_and_leave(stopped_often):
    _, seen = stopped_often
    trials, worker = seen["controller killed"]
    assert trials[worker.doing["number"]].is_result


@pytest.mark.slow
def test_a_worker_that_joins_finishes_the_rest_alone(stopped_often):
    _, seen = stopped_often
    code, trials = seen["joined"]
    assert code == 0
    assert all(trial.is_result for trial in trials)
    assert trials[-1].worker is not None


@pytest.mark.slow
def test_after_all_of_it_each_trial_is_there_once(stopped_often):
    line, _ = stopped_often
    trials = line.tickets("ia3")
    assert [trial.number for trial in trials] == list(range(6))
    assert all(trial.is_result for trial in trials)
    row = line.table()["ia3"]
    assert (row["trials"], row["failed"]) == (6, 0)
    assert list(line.workers()) == []


@pytest.mark.slow
def test_a_line_of_the_journal_that_was_cut_short_is_dropped(stopped_often):
    line, _ = stopped_often
    lines = (line.sweep / "study.journal").read_text().splitlines()
    assert lines
    assert all("op_code" in json.loads(text) for text in lines)  # a torn one would not be JSON


def test_a_child_that_hangs_is_killed(tmp_path):
    child = TrialProcess(dict(os.environ), subprocess.DEVNULL, stall_seconds=1.0)
    stopped = []

    def stop_it():
        if not stopped:
            stopped.append(child.pid)
            os.kill(child.pid, signal.SIGSTOP)
        return False

    outcome = child.run(TrialRequest((), str(tmp_path), "valid/loss"), lambda message: None, stop_it)
    assert outcome.ending is Ending.CRASHED
    assert "did nothing for 1 s" in outcome.cause
    assert not lives(stopped[0])


@pytest.fixture(scope="module")
def broken(tmp_path_factory, sweep_line):
    """A sweep on a model whose weights are cut short. They are mended, failed trials retried, the command run again;
    while it tunes, the test rows are lost."""
    line = sweep_line(tmp_path_factory.mktemp("broken"))
    rows = "".join(json.dumps({"query": f"{n} + 1?", "response": f"The answer is: {n + 1}"}) + "\n" for n in range(32))
    for name in ("train", "test"):
        (line.folder / f"{name}.jsonl").write_text(rows)
    weights = shutil.copytree(LLAMA_FOLDER, line.folder / "model") / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:5000])
    files = ["task.train_files=train.jsonl", "task.test_files=test.jsonl", "task.train_rows=20", "task.valid_rows=8"]
    model = ["model=hf", "model.id=./model", "model.dtype=float32", "plan=false"]
    job = [setting for setting in line.JOB if "_rows=" not in setting or "general" in setting]
    settings = [*job, *files, *model, "n_trials=5", "workers=1", "confirm.seeds=1"]
    command = [*line.FAIR, "method=ia3", "tracking=none", *settings]
    seen = {"failing": line.run(*command, code=1)}
    seen["row"], seen["trials"] = line.table()["ia3"], line.tickets("ia3")
    weights.write_bytes(whole)
    seen["retry"] = line.run("retry", str(line.sweep))
    running = line.start(*command)
    line.wait(lambda: line.busy_worker(), running)
    (line.folder / "test.jsonl").write_text("this is no row\n")
    seen["mended"] = running.communicate(timeout=DEADLINE_SECONDS)[0]
    assert running.returncode == 1, seen["mended"]  # nothing is confirmed
    return line, seen


@pytest.mark.slow
def test_three_failures_in_a_row_stop_a_study_with_the_cause(broken):
    _, seen = broken
    assert seen["row"]["failed"] == 3
    assert "weight files must be whole" in seen["row"]["stopped"]
    assert "ia3: stopped. 3 trials failed in a row" in seen["failing"]
    assert [trial.state.name for trial in seen["trials"]] == ["FAIL"] * 3 + ["WAITING"]
    assert {trial.outcome.ending for trial in seen["trials"][:3]} == {Ending.REFUSED}
    assert {trial.attempts for trial in seen["trials"]} == {0}  # trying again could not help


@pytest.mark.slow
def test_retry_runs_failed_trials_and_no_others_again(broken):
    line, seen = broken
    assert "3 failed trials wait to be run again" in seen["retry"]
    trials = line.tickets("ia3")
    retried = {trial.terms.retry_of: trial for trial in trials if trial.terms.retry_of is not None}
    assert set(retried) == {0, 1, 2}
    for number, trial in retried.items():
        assert trial.params == (trials[number].params or trials[number].terms.params)
    row = line.table()["ia3"]
    assert (row["trials"], row["failed"], row["stopped"]) == (5, 0, None)
    assert sum(trial.is_result for trial in trials) == 5


@pytest.mark.slow
def test_tuning_does_not_open_test_data(broken):
    line, _ = broken
    assert sum(trial.is_result for trial in line.tickets("ia3")) == 5


@pytest.mark.slow
def test_whoever_opens_that_test_data_fails(broken):
    """So the test above would fail too, if a trial did."""
    line, seen = broken
    confirmed = line.tickets("ia3", Stage.CONFIRM)
    assert confirmed
    assert all("test.jsonl" in trial.outcome.cause for trial in confirmed)
    assert line.table()["ia3"]["confirm_failed"] == len(confirmed)
    assert f"ia3: {len(confirmed)} confirm job" in seen["mended"]
