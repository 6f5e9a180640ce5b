"""A sweep that is killed while it tunes, between two looks and within one, comes to the verdict of one that nobody
disturbed."""

import json
import os
import signal
from pathlib import Path

import pytest

from peftsweep.records.results import Stage

pytestmark = [pytest.mark.process, pytest.mark.slow]

TOY = Path(__file__).parents[1] / "toy"
METHODS = ("toy-lora", "toy-loha")
FIRST_LOOK = 2
COMMAND = (
    *("--config-dir", str(TOY / "conf"), "-m", "hydra/sweeper=fair", "name=s", "task=toy-sums", "device=cpu"),
    *("tracking=none", f"method={','.join(METHODS)}", "n_trials=3", "workers=1"),
    *("confirm.looks=[2,3,4]", "confirm.margin=0", "confirm.default_seeds=0"),
)


def toy_line(folder, sweep_line):
    folder.mkdir()
    line = sweep_line(folder)
    line.environment["PYTHONPATH"] = os.pathsep.join([str(TOY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return line


def kill(line, controller):
    """The controller and its workers at once, as when a machine loses its power."""
    workers = line.workers().values()
    controller.kill()
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    controller.communicate()


def confirmed(line):
    return sum(trial.is_finished for method in METHODS for trial in line.tickets(method, Stage.CONFIRM))


@pytest.fixture(scope="module")
def lines(tmp_path_factory, sweep_line):
    """Two sweeps of one command: undisturbed, and killed three times."""
    folder = tmp_path_factory.mktemp("verdicts")
    undisturbed, killed = (toy_line(folder / name, sweep_line) for name in ("undisturbed", "killed"))
    undisturbed.run(*COMMAND)
    running = killed.start(*COMMAND)
    killed.wait(lambda: killed.finished(*METHODS) and killed.busy_worker(), running)
    kill(killed, running)
    for jobs in (FIRST_LOOK * len(METHODS), FIRST_LOOK * len(METHODS) + 1):
        running = killed.start(*COMMAND)
        killed.wait(lambda least=jobs: killed.finished(*METHODS) == 6 and confirmed(killed) >= least, running)
        kill(killed, running)
    killed.run(*COMMAND)
    return undisturbed, killed


def told(line):
    """All that the sweep's table says of the verdict and of what it rests on."""
    table = json.loads((line.sweep / "table.json").read_text())
    scores = {row["study"]: (row["best"], row["seed_scores"]) for row in table["rows"]}
    return table["verdicts"], scores


def test_both_come_to_the_same_verdict_on_the_same_scores(lines):
    undisturbed, killed = map(told, lines)
    assert undisturbed == killed
    assert len(undisturbed[0]) == 1


def test_it_looked_more_than_once(lines):
    [verdict] = told(lines[0])[0]
    assert verdict["look"] > FIRST_LOOK


def test_no_seed_was_run_twice(lines):
    for line in lines:
        for method in METHODS:
            seeds = [trial.terms.seed for trial in line.tickets(method, Stage.CONFIRM)]
            assert len(set(seeds)) == len(seeds)
            assert all(trial.is_result for trial in line.tickets(method, Stage.CONFIRM))
