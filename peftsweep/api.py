"""From Python: `peftsweep.run`, `peftsweep.sweep`, `peftsweep.load`, and what they answer.

job = peftsweep.run("method=lora", "task=metamath", "hparams.max_steps=100")
job.metrics["test/accuracy"], job.predictions(), job.model()

peftsweep.sweep("method=lora,oft", "task=metamath", n_trials=8)
results = peftsweep.load("outputs/sweeps/words")
results.jobs(), results.trials(), results.items(), results.curves()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsweep.config.check import check_command_line
from peftsweep.config.compose import parse_command_line
from peftsweep.errors import ConfigError, Problem
from peftsweep.job.preflight import check_jobs
from peftsweep.records import jobs as records
from peftsweep.records.files import ADAPTER_FOLDER, OUTPUTS, PREDICTIONS_FILE, SWEEP_FILE, SWEEPS_FOLDER
from peftsweep.records.results import JobResult, Stage
from peftsweep.report.sources import load_jobs
from peftsweep.sweeps.start import sweep

if TYPE_CHECKING:
    import pandas
    from torch import nn

__all__ = ["Job", "Results", "load", "run", "sweep"]

SEARCHED = {"lr": "hparams.lr", "capacity": "method.capacity"}  # columns of every frame of jobs: dotted key


@dataclass(frozen=True)
class Job:
    """One finished job, of this machine or of an MLflow store."""

    record: records.Job

    @property
    def result(self) -> JobResult:
        """All that is known of it: status, cause, metrics, intervals, settings, environment."""
        return self.record.result

    @property
    def metrics(self) -> dict[str, float]:
        """By key, `test/accuracy`; what was not measured is absent."""
        return self.result.metrics

    @property
    def folder(self) -> Path | None:
        """None where the job is known from MLflow alone."""
        folder = Path(self.record.location)
        return folder if folder.is_dir() else None

    @property
    def adapter(self) -> Path | None:
        """The folder for `PeftModel.from_pretrained`, of full fine-tuning a whole model; None if it wasn't kept."""
        path = self.folder / ADAPTER_FOLDER if self.folder else None
        return path if path and path.is_dir() else None

    def predictions(self) -> pandas.DataFrame:
        """A row for each test item: prompt, target, generated, ...; empty if the job left none."""
        import pandas

        path = self.record.file(PREDICTIONS_FILE)
        lines = path.read_text(encoding="utf-8").splitlines() if path else []
        return pandas.DataFrame([json.loads(line) for line in lines])

    def curves(self) -> pandas.DataFrame:
        """A row for each step and report: step, unix_seconds and metrics, NaN where one was not measured."""
        import pandas

        return pandas.DataFrame(self.record.history())

    def model(self, device: str = "auto", *, trusted: bool = False) -> nn.Module:
        """The base model with the trained adapter on it, in eval mode.

        trusted: let its settings name code to run. Raises DataError where the adapter wasn't kept, ModelError where the
        base model can't be had.
        """
        from peftsweep.exchange.finished import load_base_of, open_job, put_trained
        from peftsweep.job.device import choose_device

        job = open_job(Path(self.record.location), trusted=trusted)
        return put_trained(job, load_base_of(job, choose_device(device)))


@dataclass(frozen=True)
class Results:
    """The finished jobs of a folder, a sweep or a store. It can be iterated; each method answers a frame."""

    loaded: records.Loaded

    def __iter__(self) -> Iterator[Job]:
        return map(Job, self.loaded.jobs)

    def __len__(self) -> int:
        return len(self.loaded.jobs)

    def jobs(self) -> pandas.DataFrame:
        """A row for each job: what it was (method, model, task, seed, stage, study, lr, capacity, ...), how it ended,
        where it lies, then its metrics by key."""
        return _frame(self, _job_row)

    def trials(self) -> pandas.DataFrame:
        """The same of the jobs whose settings were searched."""
        return _frame((job for job in self if job.result.stage is Stage.TUNE), _job_row)

    def items(self) -> pandas.DataFrame:
        """A row for each test item of each job: its number, score, and what predictions.jsonl holds of it."""
        return _long(self, Job.predictions, "item")

    def curves(self) -> pandas.DataFrame:
        """A row for each step and report of each job."""
        return _long(self, Job.curves)


def run(*overrides: str, folder: str | Path | None = None, config_dir: str | Path | None = None) -> Job:
    """Run one job and answer it.

    overrides: as on the command line, `"method=lily"`; folder: where its files go, one under outputs/ by default;
    config_dir: your own YAML files. The base model is kept for the next one of the process.

    Raises what ended the job: ConfigError or DataError before anything starts, MethodError, OutOfMemoryError, ...
    """
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    line = parse_command_line([*flags, *overrides])
    jobs = check_command_line(line)
    if len(jobs) > 1:
        raise ConfigError(Problem("run is for one job", len(jobs), "overrides", "peftsweep.sweep compares several."))
    check_jobs(jobs, hub=False)
    from peftsweep.sweeps.execution.hydra_job import run_composed  # imports torch

    target = Path(folder) if folder else OUTPUTS / f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"
    run_composed(list(overrides), target.absolute(), line.config_dir, number=0)
    return Job(records.read_job(target))


def load(source: str | Path) -> Results:
    """The finished jobs of a folder (of one job, of a sweep, of anything that holds jobs), of a sweep by its name, or
    of an MLflow store by its URI.

    Raises DataError where there is none; TrackingError for a store that can't be read.
    """
    named = SWEEPS_FOLDER / source
    return Results(load_jobs(named if (named / SWEEP_FILE).exists() else source))


def _job_row(job: Job) -> dict[str, Any]:
    result, settings = job.result, job.record.settings
    told = {key: str(getattr(result, key)) for key in ("method", "model", "task", "stage", "status")}
    searched = {name: settings.get(key) for name, key in SEARCHED.items()}
    others = {"seed": result.seed, "study": result.study, "cause": result.cause, "steps": result.steps}
    return {"job": job.record.name, **told, **searched, **others, "location": job.record.location, **result.metrics}


def _frame(jobs: Iterable[Job], row: Callable[[Job], dict[str, Any]]) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame([row(job) for job in jobs])


def _long(jobs: Iterable[Job], part: Callable[[Job], pandas.DataFrame], number: str | None = None) -> pandas.DataFrame:
    import pandas

    frames = []
    for job in jobs:
        frame = part(job)
        for position, key in enumerate(("location", "method", "seed")):
            value = job.record.location if key == "location" else getattr(job.result, key)
            frame.insert(position, key, value)
        if number:
            frame.insert(3, number, range(len(frame)))
        frames.append(frame)
    return pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()
