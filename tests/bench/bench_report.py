"""How long a report of many jobs takes, from folders and from MLflow, and how much memory. The jobs are generated.

python tests/bench/bench_report.py                10,000 jobs: 20 methods, 3 confirm jobs each, 1,319 test items
python tests/bench/bench_report.py --jobs 100

The rows go into MLflow's tables directly: logging 10,000 runs by its client would take most of an hour.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftsweep.results import JobResult, Stage, Status, save_result

SEEDS = 3
ITEMS = 1319
STEP_METRICS = 20  # steps logged by each job
METRICS = {
    "forgetting_nats": 0.1,
    "adapter/trainable_params": 9175040,
    "adapter/total_params": 3221924864,
    "adapter/file_bytes": 36720640,
    "memory/train_peak_reserved_bytes": 2.1e10,
    "memory/train_peak_allocated_bytes": 2.0e10,
    "memory/train_reserved_avg_bytes": 1.9e10,
    "memory/train_reserved_p99_bytes": 2.0e10,
    "memory/job_peak_reserved_bytes": 2.2e10,
    "memory/job_peak_rss_bytes": 3e9,
    "time/setup_seconds": 20.0,
    "time/train_seconds": 900.0,
    "time/eval_seconds": 300.0,
    "time/job_seconds": 1300.0,
    "time/step_median_seconds": 0.18,
    "train/tokens": 4e6,
    "train/tokens_per_second": 4400.0,
    "energy/train_joules": 250000.0,
}
ENVIRONMENT = {"python": "3.11", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "gpu": "L40S"}
ENVIRONMENT |= {"peftsweep": "0.1.0", "cuda": "13.0", "driver": "580.1", "commit": "f" * 40, "dirty": "false"}
HPARAMS = {f"setting_{number}": number for number in range(40)} | {"max_steps": 5000, "batch_size": 4}


def generate(count: int, methods: int) -> Iterator[tuple[str, JobResult]]:
    """(place, job): a sweep whose studies have as many trials as make `count` jobs with their confirm jobs."""
    draw = random.Random(0)
    for number in range(count):
        method, rank = f"method{number % methods}", number // methods
        is_confirm = rank < SEEDS
        name = f"best-seed-{rank + 1}" if is_confirm else f"{rank - SEEDS:04}"
        lr = 1e-3 if is_confirm or rank == SEEDS else 10 ** draw.uniform(-5, -2)
        metrics = METRICS | {"valid/loss": 0.5 + abs(lr - 1e-3) * 100, "train/loss": 0.5}
        metrics |= {"test/accuracy": 0.0, "test/loss": 0.6} if is_confirm else {}
        yield (
            f"{method}/{name}",
            JobResult(
                status=Status.OK if is_confirm or rank == SEEDS or draw.random() < 0.4 else Status.PRUNED,
                method=method,
                model="llama-3.2-3b",
                task="metamath",
                seed=rank if is_confirm else 0,
                stage=Stage.CONFIRM if is_confirm else Stage.TUNE,
                study=f"bench/{method}",
                metrics=metrics,
                intervals={"test/accuracy": (0.4, 0.6)} if is_confirm else {},
                test_items="0123456789abcdef" if is_confirm else None,
                model_revision="a" * 40,
                config={"hparams": HPARAMS | {"lr": lr, "gradient_accumulation": 1}, "method": {"capacity": 32}},
                environment=ENVIRONMENT,
                started_at="2026-01-01T00:00:00+00:00",
            ),
        )


def write_jobs(folder: Path, count: int, methods: int) -> list[tuple[Path, JobResult]]:
    """The folders of all jobs, with the test items of those that were confirmed."""
    draw, written = random.Random(1), []
    for place, result in generate(count, methods):
        job = folder / place
        job.mkdir(parents=True)
        if result.stage is Stage.CONFIRM:
            chance = 0.4 + 0.02 * int(result.method.removeprefix("method")) + draw.uniform(-0.01, 0.01)
            right = [draw.random() < chance for _ in range(ITEMS)]
            result.metrics["test/accuracy"] = sum(right) / ITEMS
            lines = (json.dumps({"prompt": "x" * 200, "generated": "y" * 400, "correct": item}) for item in right)
            (job / "predictions.jsonl").write_text("\n".join(lines))
        save_result(result, job)
        written.append((job, result))
    return written


def write_store(path: Path, jobs: list[tuple[Path, JobResult]], *, artifacts: bool) -> str:
    """An MLflow database with a run for each job. artifacts: they lie beside it, as those of a local store do."""
    from mlflow import MlflowClient

    from peftsweep.tracking.tracker import result_tags

    uri = f"sqlite:///{path}"
    experiment = MlflowClient(uri).create_experiment("bench", (path.parent / "mlartifacts").as_uri())
    database = sqlite3.connect(path)
    for job, result in jobs:
        run = uuid.uuid4().hex
        place = job.as_uri() if artifacts else f"s3://nowhere/{run}"
        _insert(database, "runs", run_uuid=run, name=f"{result.method} {job.name}", source_type="UNKNOWN",
                status="FINISHED", start_time=0, end_time=1, lifecycle_stage="active", artifact_uri=place,
                experiment_id=int(experiment), source_name="", entry_point_name="", user_id="")  # fmt: skip
        tags = {f"peftsweep.{key}": value for key, value in result_tags(result).items()}
        for key, value in tags.items():
            _insert(database, "tags", key=key, value=value, run_uuid=run)
        hparams = result.config["hparams"]
        for key, value in {"hparams.lr": hparams["lr"], "hparams.max_steps": 5000, "method.capacity": 32}.items():
            _insert(database, "params", key=key, value=str(value), run_uuid=run)
        system = {f"system/metric_{number}": 1.0 for number in range(8)}
        for key, value in (result.metrics | system).items():
            _insert(database, "latest_metrics", key=key, value=value, timestamp=0, step=1, is_nan=0, run_uuid=run)
        for step in range(STEP_METRICS):
            for key in ("train/loss", "train/lr"):
                _insert(database, "metrics", key=key, value=0.5, timestamp=step, run_uuid=run, step=step, is_nan=0)
    database.commit()
    return uri


def _insert(database: sqlite3.Connection, table: str, **values: Any) -> None:
    columns, marks = ", ".join(f'"{key}"' for key in values), ", ".join("?" for _ in values)
    database.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", list(values.values()))


MEASURE = """
import resource, sys, time
started = time.perf_counter()
from peftsweep.report.groups import compare
from peftsweep.report.load import load_jobs
loaded = load_jobs(sys.argv[1])
read = time.perf_counter() - started
comparison = compare(loaded)
whole = time.perf_counter() - started
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
group = comparison.groups[0]
print(f"{len(loaded.jobs)} jobs, {len(group.rows)} rows, {len(group.pairs)} pairs: {read:.1f} s to load, "
      f"{whole:.1f} s with the comparison ({time.process_time():.1f} s of CPU), {memory:.2f} GB")
"""


def measure(label: str, source: str) -> None:
    """In a process of its own, from its first import on."""
    done = subprocess.run([sys.executable, "-c", MEASURE, source], capture_output=True, text=True, check=False)
    print(f"{label:<42} {done.stdout.strip() or done.stderr[-2000:]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--methods", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.perf_counter()
        jobs = write_jobs(folder / "sweep", options.jobs, options.methods)
        local = write_store(folder / "local.db", jobs, artifacts=True)
        remote = write_store(folder / "remote.db", jobs, artifacts=False)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"generated in {time.perf_counter() - started:.0f} s, {memory:.2f} GB")
        measure("folders", str(folder / "sweep"))
        measure("MLflow, artifacts on this machine", local)
        measure("MLflow, tables alone", remote)


if __name__ == "__main__":
    main()
