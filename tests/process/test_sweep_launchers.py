"""Fair sweeps whose workers are the jobs of Hydra's own launchers."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest

from peftsweep.results import Stage

pytestmark = pytest.mark.process

TRIALS = 2
STUDIES = ("lora", "ia3")
SETTINGS = ["tracking=none", f"n_trials={TRIALS}", "confirm.seeds=1"]


def launcher(name, package, *settings):
    missing = importlib.util.find_spec("hydra_plugins") is None or importlib.util.find_spec(package) is None
    skip = pytest.mark.skipif(missing, reason=f"{package} is not installed")
    return pytest.param([f"hydra/launcher={name}", *settings], id=name, marks=skip)


RAY = ["++hydra.launcher.ray.init.num_cpus=2", "++hydra.launcher.ray.init.include_dashboard=false"]
LAUNCHERS = [
    pytest.param(["hydra/launcher=basic"], id="basic"),
    launcher("joblib", "hydra_plugins.hydra_joblib_launcher", "workers=2"),
    launcher("submitit_local", "hydra_plugins.hydra_submitit_launcher", "workers=2"),
    launcher("ray", "hydra_plugins.hydra_ray_launcher", "workers=2", *RAY),
]


def assert_complete(line, studies=STUDIES, trials=TRIALS):
    for study in studies:
        assert [trial.number for trial in line.tickets(study)] == list(range(trials))
        assert all(trial.is_result for trial in line.tickets(study))
        assert {str(trial.outcome.status) for trial in line.tickets(study, Stage.CONFIRM)} == {"ok"}
        assert (line.table()[study]["trials"], line.table()[study]["failed"]) == (trials, 0)
    assert line.workers() == {}


@pytest.mark.parametrize("how", LAUNCHERS)
def test_a_sweep_runs_through_a_launcher(how, tmp_path, sweep_line):
    line = sweep_line(tmp_path)
    printed = line.run(*line.FAIR, "method=lora,ia3", *line.JOB, *SETTINGS, *how)
    assert_complete(line)
    assert "95% interval" in printed
    assert {path.name for path in tmp_path.iterdir()} <= {"outputs", ".submitit"}


def test_ctrl_c_reaches_a_worker_in_the_controllers_own_process(tmp_path, sweep_line):
    line = sweep_line(tmp_path)
    running = line.start(*line.FAIR, "method=ia3", *line.JOB, "tracking=none", "n_trials=4", "hydra/launcher=basic")
    line.wait(lambda: line.busy_worker(), running)
    running.send_signal(signal.SIGINT)
    printed = running.communicate(timeout=300)[0]
    assert running.returncode == 130, printed
    assert "what runs is finished first" in printed
    states = [trial.state.name for trial in line.tickets("ia3")]
    assert "RUNNING" not in states
    assert states[-1] == "WAITING"


@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="hydra_joblib_launcher is not installed",
)
def test_a_sweep_survives_that_joblib_ends_all_workers_when_one_is_killed(tmp_path, sweep_line):
    line = sweep_line(tmp_path)
    command = [*line.FAIR, "method=lora,ia3", *line.JOB, "tracking=none", "n_trials=4", "confirm.seeds=0"]
    running = line.start(*command, "hydra/launcher=joblib", "workers=2")
    worker = line.wait(lambda: line.busy_worker() if line.finished(*STUDIES) >= 1 else None, running)
    os.kill(worker.pid, signal.SIGKILL)
    printed = running.communicate(timeout=300)[0]
    assert running.returncode == 0, printed
    assert "The launcher ended with" in printed
    for study in STUDIES:
        assert [trial.number for trial in line.tickets(study)] == list(range(4))
        assert all(trial.is_result for trial in line.tickets(study))
    assert len(list(Path(line.sweep).glob("*/*-attempt-2"))) >= 1
