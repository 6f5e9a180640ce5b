"""Score a trained job later: its own evaluation, where that failed or was never reached, or other questions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import torch

from peftsweep.errors import OutputError, Problem
from peftsweep.exchange.finished import FinishedJob, load_base_of, put_trained
from peftsweep.job.device import use_device
from peftsweep.job.display import Display
from peftsweep.job.evaluation import Scores, base_score_wanted, evaluate_job, measure_base
from peftsweep.job.preflight import check_jobs
from peftsweep.job.record import completing, write_evidence
from peftsweep.job.resolve import resolve_questions
from peftsweep.memory.meters import HostMemoryMeter, build_device_meter
from peftsweep.memory.probe import Probe
from peftsweep.modalities.base import Task, modality_of
from peftsweep.records.environment import describe_environment
from peftsweep.records.files import EVALUATIONS_FOLDER, SCORES_FILE, write_whole
from peftsweep.records.redact import redact_params
from peftsweep.records.results import JobResult, Stage, Status


def is_unscored(job: FinishedJob) -> bool:
    """Whether the job's own evaluation is still to be done. Trials of tuning have none."""
    return job.result.status is not Status.OK and job.result.stage is not Stage.TUNE


def complete_job(job: FinishedJob, device: torch.device, display: Display) -> JobResult:
    """Do the evaluation that a trained job did not come to; its result.json and MLflow run are then as if it had.

    Raises what ended it, as `run_job` does; the adapter stays, and the result tells the cause.
    """
    with completing(job.config, job.folder, job.result) as record, display.running():
        probe = Probe(build_device_meter(str(device)), HostMemoryMeter())
        record.measure = lambda: _added(job.result.metrics, probe.metrics())
        with probe.phase("eval"):
            scores, task = _score(job, device, display)
        record.result.test_items = task.test_fingerprint()
        record.write_scores(scores, task)
    return record.result


def ask_job(
    job: FinishedJob, overrides: Sequence[str], folder: Path | None, device: torch.device, display: Display
) -> tuple[Path, Scores]:
    """Score a trained job by the task as `overrides` change it, beside its own result, which stays as it is.

    folder: where to; None: one of its own under the job's `evaluations/`. Answers it, and the scores.
    """
    asked = dataclasses.replace(job, config=resolve_questions(job.result.config, overrides))
    folder = folder or job.folder / EVALUATIONS_FOLDER / f"{datetime.now():%Y-%m-%d-%H-%M-%S}"
    if folder.exists() and any(folder.iterdir()):
        rule = "the folder of an evaluation must be empty"
        raise OutputError(Problem(rule, str(folder), "folder=", "Choose another."))
    with display.running():
        scores, task = _score(asked, device, display)
    folder.mkdir(parents=True, exist_ok=True)
    write_evidence(scores, folder)
    content = {
        "job": str(job.folder),
        "task": redact_params(dataclasses.asdict(asked.config.task)),
        "metrics": scores.metrics,
        "intervals": scores.intervals,
        "test_items": task.test_fingerprint(),
        "task_version": task.version,
        "generation_config": scores.generation_config,
        "environment": describe_environment(),
    }
    write_whole(folder / SCORES_FILE, json.dumps(content, indent=2, default=str) + "\n")
    return folder, scores


def _score(job: FinishedJob, device: torch.device, display: Display) -> tuple[Scores, Task]:
    config = job.config
    check_jobs([config], hub=True)
    use_device(device, tf32=config.hparams.tf32)
    base = load_base_of(job, device)
    task = modality_of(config.task).build_task(config.task, config.hparams, base, Path(config.cache), display.progress)
    wanted = base_score_wanted(config.task.base_score, config.stage)
    before = measure_base(task, base, config.model, wanted, Path(config.cache))
    model = put_trained(job, base)
    task.prepare(model)
    return evaluate_job(task, model, before, read_test=True), task


def _added(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """The measurements of training, with the time of a later evaluation."""
    return {key: before.get(key, 0.0) + now[key] for key in ("time/eval_seconds", "time/job_seconds") if key in now}
