"""What a job must be for its adapter to be taken out."""

import json

import pytest
import torch

from peftsweep.errors import ConfigError, DataError, ModelError
from peftsweep.exchange.finished import load_base_of, open_job
from peftsweep.exchange.weights import unquantised
from peftsweep.records.results import RESULT_FILE

CPU = torch.device("cpu")


def changed(folder, target, **changes):
    """A copy of a job's folder whose result says something else."""
    target.mkdir()
    (target / "adapter").symlink_to(folder / "adapter")
    content = json.loads((folder / RESULT_FILE).read_text()) | changes
    (target / RESULT_FILE).write_text(json.dumps(content))
    return target


def test_a_finished_job_has_its_settings_back(finished):
    job = open_job(finished("lora"))
    assert (job.config.method.name, job.config.hparams.max_steps, job.is_full) == ("lora", 2, False)


def test_a_job_whose_evaluation_failed_is_opened_as_its_training_is_over(finished, tmp_path):
    assert open_job(changed(finished("lora"), tmp_path / "job", status="oom")).adapter.is_dir()


def test_a_job_without_its_adapter_is_refused(finished, tmp_path):
    folder = changed(finished("lora"), tmp_path / "job", status="failed")
    (folder / "adapter").unlink()
    with pytest.raises(DataError, match=r"the job is failed.*save_adapter=true"):
        open_job(folder)


def test_a_result_that_names_code_is_refused_until_it_is_trusted(finished, tmp_path):
    config = json.loads((finished("lora") / RESULT_FILE).read_text())["config"]
    config["model"]["trust_remote_code"] = True
    folder = changed(finished("lora"), tmp_path / "job", config=config)
    with pytest.raises(ConfigError, match="trust=true"):
        open_job(folder)
    assert open_job(folder, trusted=True).config.model.trust_remote_code


def test_settings_of_no_known_version_are_refused(finished, tmp_path):
    config = json.loads((finished("lora") / RESULT_FILE).read_text())["config"]
    config["hparams"]["max_stepz"] = 3
    with pytest.raises(ConfigError, match="max_stepz"):
        open_job(changed(finished("lora"), tmp_path / "job", config=config))


def test_another_base_model_than_the_job_s_is_refused(finished, tmp_path):
    job = open_job(changed(finished("lora"), tmp_path / "job", model_revision="0" * 40))
    with pytest.raises(ModelError, match="0000"):
        load_base_of(job, CPU)


@pytest.mark.parametrize(("dtype", "merged_in"), [("int4", "bfloat16"), ("int8", "bfloat16"), ("float32", "float32")])
def test_a_quantised_base_is_merged_in_bfloat16(dtype, merged_in):
    assert unquantised(dtype) == merged_in
