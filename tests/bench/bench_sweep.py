"""What a sweep costs beside training: bookkeeping, the step from one trial to the next, and a second worker.

python tests/bench/bench_sweep.py                      all three, about ten minutes on two cores
python tests/bench/bench_sweep.py bookkeeping 400      400 trials of an empty job on 8 workers
python tests/bench/bench_sweep.py warm
python tests/bench/bench_sweep.py workers

Each prints a ratio against a baseline of the same run.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL = ("task.valid_rows=100", "task.general_rows=0", "confirm.seeds=0", "pruner.name=none")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
METRICS_OF_A_STEP, STEPS, REPORTS = 10, 50, 10


def sweep_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "peftsweep", "-m", "hydra/sweeper=fair", "task=metamath", *SMALL, *arguments]


def run_sweep(folder: Path, *arguments: str) -> Path:
    """A sweep in a folder of its own; answers the sweep's folder."""
    command = sweep_command("name=bench", *arguments)
    done = subprocess.run(command, cwd=folder, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "outputs/sweeps/bench"


def trials_of(sweep: Path, study: str) -> list[Any]:
    from peftsweep.sweeps.execution.storage import open_storage
    from peftsweep.sweeps.execution.tickets import Tickets

    return Tickets(open_storage(sweep, None), f"bench/{study}").trials()


# Bookkeeping -------------------------------------------------------------------------------------------------------


def empty_job(config: Any, folder: Path, *, begun: Callable[..., None], observe: Any, **others: Any) -> None:
    """All that a job does beside its work: 500 metric values, 10 reports, its files, its MLflow run."""
    from peftsweep.job.record import recording

    with recording(config, folder) as record:
        record.begin(config)
        begun(record.tracker.run_id)
        for step in range(1, STEPS + 1):
            metrics = {f"train/metric{index}": step / (index + 1) for index in range(METRICS_OF_A_STEP)}
            record.log_step(step, metrics)
            if step % (STEPS // REPORTS) == 0:
                observe(step, {"valid/loss": 1.0 / step}, step)
        record.result.metrics["valid/loss"] = 1.0


# Put into the children's PYTHONPATH as sitecustomize.py: real workers and children then run empty jobs.
EMPTY_JOBS = f"""
import sys
if "peftsweep.sweeps.execution.trial_server" in sys.orig_argv:
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import bench_sweep
    from peftsweep.sweeps.execution import hydra_job
    hydra_job.run_one_job = bench_sweep.empty_job
"""


def bookkeeping(trials: int = 400, workers: int = 8) -> None:
    """CPU seconds a trial, from two sweeps of different length: what each process costs to start cancels out."""
    few = workers * 2
    short_cpu, _, _ = _empty_sweep(few, workers)
    cpu, wall, found = _empty_sweep(trials, workers)
    numbers = [trial.number for trial in found]
    complete = sum(trial.state.name == "COMPLETE" for trial in found)
    assert sorted(numbers) == list(range(trials)), "a trial was lost or doubled"
    assert complete == trials, f"{trials - complete} trials did not finish"
    each = (cpu - short_cpu) / (trials - few)
    bare = _bare_job_cpu_seconds()
    print(f"bookkeeping: {trials} trials on {workers} workers, none lost, none doubled, {wall:.0f} s")
    print(f"  CPU of a trial            {1000 * each:8.0f} ms")
    print(f"  the same job without sweep{1000 * bare:8.0f} ms   ratio {each / bare:.2f}")


def _empty_sweep(trials: int, workers: int) -> tuple[float, float, list[Any]]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(EMPTY_JOBS)
        environment = ONE_THREAD | {"PYTHONPATH": folder}
        arguments = [f"n_trials={trials}", f"workers={workers}", "sampler.name=random", "method=lora", "name=bench"]
        before, started = _children_cpu_seconds(), time.perf_counter()
        subprocess.run(sweep_command(*arguments), cwd=folder, env=environment, capture_output=True, check=True)
        used, wall = _children_cpu_seconds() - before, time.perf_counter() - started
        return used, wall, trials_of(Path(folder) / "outputs/sweeps/bench", "lora")


def _bare_job_cpu_seconds(count: int = 10) -> float:
    """The baseline: the same empty job run alone in one process, without storage, worker or controller."""
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r}); import bench_sweep\n"
        "from pathlib import Path; from peftsweep.sweeps.execution import hydra_job\n"
        "hydra_job.run_one_job = bench_sweep.empty_job\n"
        "def run(number):\n"
        "    folder = Path(f'jobs/{number:04d}'); folder.mkdir(parents=True)\n"
        "    overrides = ['method=lora', 'task=metamath', 'stage=tune', 'tracking.params=[hparams.lr]',\n"
        "                 'tracking.system_metrics=false']\n"
        "    hydra_job.run_composed(overrides, folder.absolute(), None, number=number, begun=lambda run_id: None,\n"
        "                           observe=lambda *seen: None)\n"
        "run(0); started = time.process_time()\n"
        f"for number in range(1, {count + 1}): run(number)\n"
        f"print((time.process_time() - started) / {count})"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=folder, env=ONE_THREAD, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# From one trial to the next ----------------------------------------------------------------------------------------


def warm() -> None:
    """Seconds between the end of a trial and the start of the next one's first step, against a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = run_sweep(Path(folder), "method=lora", "n_trials=8", "workers=1", "hparams.max_steps=5")
        trials = trials_of(sweep, "lora")
        ends = [trial.ended_at_seconds for trial in trials]
        starts = [_first_step_began(Path(trial.folder)) for trial in trials]
        gaps = [start - end for end, start in zip(ends, starts[1:], strict=False)]
        cold = _cold_start_seconds(Path(folder))
    print(f"warm: first step {statistics.median(gaps):.2f} s after the trial before ended (median of {len(gaps)},")
    print(f"  longest {max(gaps):.2f} s); in a fresh process {cold:.2f} s; ratio {cold / statistics.median(gaps):.1f}")


def _first_step_began(folder: Path) -> float:
    lines = (folder / "history.jsonl").read_text().splitlines()
    first = next(row for row in map(json.loads, lines) if "train/loss" in row)
    step_seconds = json.loads((folder / "result.json").read_text())["metrics"]["time/step_median_seconds"]
    return float(first["unix_seconds"] - step_seconds)


def _cold_start_seconds(folder: Path) -> float:
    started = time.time()
    job = ("method=lora", "task=metamath", "stage=tune", "hparams.max_steps=5", "task.valid_rows=100")
    command = [sys.executable, "-m", "peftsweep", *job, "task.general_rows=0", "hydra.run.dir=cold"]
    subprocess.run(command, cwd=folder, env=ONE_THREAD, capture_output=True, check=True)
    return _first_step_began(folder / "cold") - started


# A second worker ---------------------------------------------------------------------------------------------------


def workers() -> None:
    """Trials a minute of two workers against one, a thread each, from the first claim to the last end."""
    rates = []
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            arguments = ("method=lora", "n_trials=8", f"workers={count}", "hparams.max_steps=20", "tracking=none")
            trials = trials_of(run_sweep(Path(folder), *arguments, "sampler.name=random"), "lora")
        later = sorted(trials, key=lambda trial: trial.ended_at_seconds)[count:]  # the first of each loads the model
        span = later[-1].ended_at_seconds - sorted(trial.ended_at_seconds for trial in trials)[count - 1]
        rates.append(60 * len(later) / span)
    print(f"workers: {rates[0]:.1f} trials a minute with one, {rates[1]:.1f} with two; ratio {rates[1] / rates[0]:.2f}")


if __name__ == "__main__":
    chosen, numbers = sys.argv[1:2], [int(number) for number in sys.argv[2:]]
    for bench in (bookkeeping, warm, workers):
        if not chosen or bench.__name__ in chosen:
            bench(*numbers)
