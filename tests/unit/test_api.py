"""What Python users get: jobs, frames, models."""

import subprocess
import sys

import pytest
import torch

import peftsweep
from peftsweep.api import Job
from peftsweep.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def results(finished):
    return peftsweep.load(finished("lora").parent)


def test_the_package_shows_what_it_offers_without_importing_it():
    code = "import sys, peftsweep; print({'run', 'sweep', 'load'} <= set(dir(peftsweep)), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_a_job_has_its_metrics_files_and_model(finished):
    (job,) = peftsweep.load(finished("lora"))
    assert isinstance(job, Job)
    assert job.folder == finished("lora")
    assert job.metrics["test/loss"] > 0
    assert (job.adapter / "adapter_model.safetensors").exists()
    model = job.model("cpu")
    assert not model.training
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[0, 5, 9]])).logits.shape[:2] == (1, 3)


def test_frames_hold_a_row_for_each_job_item_and_report(results):
    jobs, items, curves = results.jobs(), results.items(), results.curves()
    assert len(jobs) == len(results)
    row = jobs[jobs.method == "lora"].iloc[0]
    assert (row.status, row.seed, row.capacity) == ("ok", 0, 32)
    assert row["test/accuracy"] == pytest.approx(items[items.location == row.location].correct.mean())
    assert {"prompt", "target", "generated"} <= set(items.columns)
    assert list(curves[curves.location == row.location].step.unique()) == [1, 2]
    assert row.location not in set(results.trials().get("location", []))  # it is no trial of a sweep


def test_a_job_runs_from_python_as_from_the_command_line(tmp_path, monkeypatch, finished, quick):
    monkeypatch.chdir(tmp_path)
    (typed,) = peftsweep.load(finished("lora"))
    job = peftsweep.run(*quick, "method=lora", f"cache={tmp_path}/cache", folder="mine")
    assert job.folder.resolve() == tmp_path / "mine"
    assert (tmp_path / "mine/.hydra/overrides.yaml").exists()
    assert job.metrics["test/loss"] == typed.metrics["test/loss"]


def test_what_is_wrong_is_told_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no such setting"):
        peftsweep.run("hparams.lrr=1")
    with pytest.raises(ConfigError, match="run is for one job"):
        peftsweep.run("seed=1,2")
    with pytest.raises(DataError):
        peftsweep.load("nowhere")
    assert not list(tmp_path.iterdir())
