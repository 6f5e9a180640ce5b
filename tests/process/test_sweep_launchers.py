"""Fair sweeps whose workers are the jobs of Hydra's own launchers."""

import importlib.util
import signal

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow]

DEADLINE_SECONDS = 300.0


def launcher(name, *settings):
    package = f"hydra_{name.partition('_')[0]}_launcher"
    is_missing = importlib.util.find_spec(f"hydra_plugins.{package}") is None
    return pytest.param(
        [f"hydra/launcher={name}", "workers=2", *settings],
        id=name,
        marks=pytest.mark.skipif(is_missing, reason=f"{package} is not installed"),
    )


RAY = ["++hydra.launcher.ray.init.num_cpus=2", "++hydra.launcher.ray.init.include_dashboard=false"]
JOBLIB, SUBMITIT, RAY_LAUNCHER = launcher("joblib"), launcher("submitit_local"), launcher("ray", *RAY)


def command_of(line, trials, *settings):
    return [*line.FAIR, *line.JOB, "tracking=none", f"n_trials={trials}", "confirm.seeds=0", *settings]


def assert_complete(line, studies, trials):
    """Each trial was finished once, and no worker is left."""
    for study in studies:
        assert [trial.number for trial in line.tickets(study)] == list(range(trials))
        assert all(trial.is_result for trial in line.tickets(study))
        assert (line.table()[study]["trials"], line.table()[study]["failed"]) == (trials, 0)
    assert line.workers() == {}


@pytest.mark.parametrize("how", [SUBMITIT, RAY_LAUNCHER])
def test_a_sweep_runs_through_a_launcher(how, tmp_path, sweep_line):
    line = sweep_line(tmp_path)
    line.run(*command_of(line, 3, "method=ia3", *how))
    assert_complete(line, ["ia3"], trials=3)
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


def test_ctrl_c_reaches_a_worker_in_the_controllers_own_process_and_the_sweep_goes_on(tmp_path, sweep_line):
    line = sweep_line(tmp_path)
    command = command_of(line, 3, "method=ia3", "hydra/launcher=basic")
    running = line.start(*command)
    line.wait(lambda: line.busy_worker(), running)
    running.send_signal(signal.SIGINT)
    printed = running.communicate(timeout=DEADLINE_SECONDS)[0]
    assert running.returncode == 130, printed
    assert "what runs is finished first" in printed
    states = [trial.state.name for trial in line.tickets("ia3")]
    assert "RUNNING" not in states
    assert states[-1] == "WAITING"
    line.run(*command)
    assert_complete(line, ["ia3"], trials=3)


@pytest.mark.parametrize("how", [JOBLIB])
def test_a_sweep_survives_that_joblib_ends_all_workers_when_one_is_killed(how, tmp_path, sweep_line):
    line = sweep_line(tmp_path)
    running = line.start(*command_of(line, 3, "method=lora,ia3", *how))
    line.wait(lambda: line.kill_worker_at_work("lora", "ia3"), running)
    printed = running.communicate(timeout=DEADLINE_SECONDS)[0]
    assert running.returncode == 0, printed
    assert "The launcher ended with" in printed
    assert_complete(line, ["lora", "ia3"], trials=3)
    assert list(line.sweep.glob("*/*-attempt-2")) != []
