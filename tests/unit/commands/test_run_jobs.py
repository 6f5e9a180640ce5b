"""What a plain job hands to Hydra, and so to Hydra's own sweepers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from peftsweep.commands import run_jobs
from peftsweep.errors import DeviceLostError, MethodError, PeftsweepError
from peftsweep.records.results import JobResult, Status

MEASURED = {"valid/loss": 0.5, "valid/dino_similarity": 0.75}


@pytest.mark.parametrize(("task", "objective"), [("metamath", 0.5), ("image-gen", 0.75)])
def test_hydras_own_sweepers_get_what_the_task_is_judged_by(
    task: str, objective: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finished(job: Any, folder: Path, **options: Any) -> JobResult:
        return JobResult(status=Status.OK, method="lora", model="m", task=task, seed=0, metrics=MEASURED)

    answered: list[float | None] = []
    run_one = run_jobs._run_one
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["peftsweep"])
    monkeypatch.setattr("peftsweep.job.run.run_job", finished)
    monkeypatch.setattr(run_jobs, "_run_one", lambda config: answered.append(run_one(config)))
    unlogged = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    assert run_jobs.run([f"task={task}", "tracking=none", *unlogged]) == 0
    assert answered == [objective]


@pytest.mark.parametrize(("error", "tried"), [(DeviceLostError, 1), (MethodError, 3)])
def test_a_grid_goes_on_after_a_failure_but_not_without_its_device(
    error: type[PeftsweepError], tried: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def fail(job: Any, folder: Path, **options: Any) -> JobResult:
        folders.append(folder)
        raise error("it failed")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("peftsweep.job.run.run_job", fail)
    with pytest.raises((SystemExit, PeftsweepError)):
        run_jobs.run(["-m", "seed=1,2,3", "tracking=none", "hydra/job_logging=none", "hydra/hydra_logging=none"])
    assert len(folders) == tried
