"""Which earlier result of a grid is that of the same job."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from peftsweep.commands.continuing import earlier_result
from peftsweep.config.schema import JobConfig
from peftsweep.records.results import JobResult, Status, save_result


@pytest.fixture
def job() -> JobConfig:
    return JobConfig()


def in_passes_of(job: JobConfig, tokens: int) -> JobConfig:
    return replace(job, hparams=replace(job.hparams, max_tokens_per_pass=tokens))


def leave(folder: Path, job: JobConfig) -> None:
    save_result(JobResult(Status.OK, "lora", "m", "t", seed=0, config=asdict(job)), folder)


def test_where_nothing_was_left_there_is_none(job: JobConfig, tmp_path: Path) -> None:
    assert earlier_result(job, tmp_path) is None


def test_it_is_of_the_same_settings_wherever_it_ran(job: JobConfig, tmp_path: Path) -> None:
    leave(tmp_path, replace(job, device="cuda:1"))
    assert earlier_result(job, tmp_path) is not None
    assert earlier_result(replace(job, seed=job.seed + 1), tmp_path) is None
    assert earlier_result(in_passes_of(job, 100), tmp_path) is None


def test_a_job_that_was_made_to_fit_is_the_one_that_was_asked_for(job: JobConfig, tmp_path: Path) -> None:
    leave(tmp_path, replace(in_passes_of(job, 100), fit=True))
    assert earlier_result(replace(job, fit=True), tmp_path) is not None
    assert earlier_result(job, tmp_path) is None
