"""How long a report of many jobs takes, from folders and from MLflow, and how much memory. The jobs are generated.

python tests/bench/bench_report.py                10,000 jobs: 20 methods, 3 confirm jobs each, 1,319 test items
python tests/bench/bench_report.py --jobs 100
python tests/bench/bench_report.py --singles      10,000 single jobs whose settings all differ, 100 test items

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

from peftsweep.records.results import JobResult, Stage, Status, save_result

SEEDS = 3
ITEMS, ITEMS_OF_SINGLES = 1319, 100
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


def generate_singles(count: int, methods: int) -> Iterator[tuple[str, JobResult]]:
    """(place, job): settings that all differ, so that each is a row of its own in one group."""
    draw = random.Random(0)
    for number in range(count):
        memory = 1e10 * 10 ** draw.uniform(0, 0.5)
        hparams = HPARAMS | {"lr": 10 ** draw.uniform(-5, -2), "gradient_accumulation": 1}
        yield (
            f"{number:05}",
            JobResult(
                status=Status.OK,
                method=f"method{number % methods}",
                model="llama-3.2-3b",
                task="metamath",
                seed=0,
                metrics=METRICS | {"memory/train_peak_reserved_bytes": memory, "test/loss": 0.6, "valid/loss": 0.5},
                intervals={"test/accuracy": (0.4, 0.6)},
                test_items="0123456789abcdef",
                model_revision="a" * 40,
                config={"hparams": hparams, "method": {"capacity": draw.choice((8, 16, 32, 64))}},
                environment=ENVIRONMENT,
                started_at="2026-01-01T00:00:00+00:00",
            ),
        )


def write_jobs(folder: Path, jobs: Iterator[tuple[str, JobResult]]) -> list[tuple[Path, JobResult]]:
    """The folders of all jobs, with the test items of those that were scored."""
    draw, written = random.Random(1), []
    for place, result in jobs:
        job = folder / place
        job.mkdir(parents=True)
        if result.stage is not Stage.TUNE:
            chance = 0.4 + 0.02 * int(result.method.removeprefix("method")) + draw.uniform(-0.01, 0.01)
            items = ITEMS if result.stage is Stage.CONFIRM else ITEMS_OF_SINGLES
            right = [draw.random() < chance for _ in range(items)]
            result.metrics["test/accuracy"] = sum(right) / items
            lines = (json.dumps({"prompt": "x" * 200, "generated": "y" * 400, "correct": item}) for item in right)
            (job / "predictions.jsonl").write_text("\n".join(lines))
        save_result(result, job)
        written.append((job, result))
    return written


def write_store(path: Path, jobs: list[tuple[Path, JobResult]], *, artifacts: bool) -> str:
    """An MLflow database with a run for each job. artifacts: they lie beside it, as those of a local store do."""
    from mlflow import MlflowClient

    from peftsweep.records.jobs import read_item_scores
    from peftsweep.records.mlflow_format import full_tags, result_tags

    uri = f"sqlite:///{path}"
    experiment = MlflowClient(uri).create_experiment("bench", (path.parent / "mlartifacts").as_uri())
    database = sqlite3.connect(path)
    for job, result in jobs:
        run = uuid.uuid4().hex
        place = job.as_uri() if artifacts else f"s3://nowhere/{run}"
        _insert(database, "runs", run_uuid=run, name=f"{result.method} {job.name}", source_type="UNKNOWN",
                status="FINISHED", start_time=0, end_time=1, lifecycle_stage="active", artifact_uri=place,
                experiment_id=int(experiment), source_name="", entry_point_name="", user_id="")  # fmt: skip
        tags = full_tags(result_tags(result, job.name, read_item_scores(job / "predictions.jsonl")))
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
import io, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from rich.console import Console
from peftsweep.commands.write_report import write_tables
from peftsweep.report.analysis.groups import compare
from peftsweep.report.sources import load_jobs
from peftsweep.report.page.write import write_page
from peftsweep.report.analysis.frontier import find_frontier
from peftsweep.report.tables import print_comparison
source, folder = sys.argv[1], Path(sys.argv[2])
loaded = load_jobs(source)
times = [time.perf_counter()]
comparison = compare(loaded)
times.append(time.perf_counter())
frontiers = [find_frontier(group, loaded) for group in comparison.groups]
times.append(time.perf_counter())
print_comparison(comparison, Console(file=io.StringIO()))
write_tables(comparison, folder)
times.append(time.perf_counter())
page = write_page(loaded, comparison, frontiers, folder)
times.append(time.perf_counter())
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
words = ("load", "compare", "frontier", "tables", "page")
spent = [f"{word} {end - begin:.1f}" for word, begin, end in zip(words, [started, *times], times)]
sizes = [f"{path.name} {path.stat().st_size / 1e6:.1f}" for path in sorted(folder.iterdir()) if path.is_file()]
group = comparison.groups[0]
print(f"{len(loaded.jobs)} jobs, {len(group.rows)} rows, {len(group.pairs)} pairs: {time.process_time():.1f} s of CPU, "
      f"{memory:.2f} GB; seconds: {', '.join(spent)}; MB: {', '.join(sizes)}")
"""


def measure(label: str, source: str, folder: Path) -> None:
    """A whole report, in a process of its own, from its first import on."""
    command = [sys.executable, "-c", MEASURE, source, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(f"{label:<34} {done.stdout.strip() or done.stderr[-2000:]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--methods", type=int, default=20)
    parser.add_argument("--singles", action="store_true", help="single jobs instead of a sweep")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.perf_counter()
        generated = generate_singles if options.singles else generate
        jobs = write_jobs(folder / "sweep", generated(options.jobs, options.methods))
        local = write_store(folder / "local.db", jobs, artifacts=True)
        remote = write_store(folder / "remote.db", jobs, artifacts=False)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"generated in {time.perf_counter() - started:.0f} s, {memory:.2f} GB")
        measure("folders", str(folder / "sweep"), folder / "report-folders")
        measure("MLflow, artifacts on this machine", local, folder / "report-local")
        measure("MLflow, tables alone", remote, folder / "report-remote")


if __name__ == "__main__":
    main()
