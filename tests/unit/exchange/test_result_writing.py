"""A job in the layout of the PEFT library's benchmark, there and back."""

import json
import math
import os
from pathlib import Path

import pytest

from peftsweep.errors import DataError
from peftsweep.exchange.result_reading import read_reference, write_reference
from peftsweep.exchange.result_writing import export_reference
from peftsweep.records.results import JobResult, Status, save_result

REFERENCE = os.environ.get("PEFTSWEEP_REFERENCE")

CONFIG = {
    "seed": 0,
    "model": {"name": "llama-3.2-3b", "id": "meta-llama/Llama-3.2-3B", "dtype": "bfloat16"},
    "task": {"name": "metamath", "template": "Q: {prompt}\nA:", "max_new_tokens": 300},
    "method": {"name": "lora", "peft_type": "LORA", "capacity": 8, "capacity_knob": "rank", "peft": {"r": 8}},
    "hparams": {
        "lr": 3e-4,
        "weight_decay": 0.1,
        "optimizer": "AdamW",
        "optimizer_kwargs": {"eps": 1e-6},
        "scheduler": "cosine",
        "warmup_fraction": 0.1,
        "max_steps": 4,
        "batch_size": 2,
        "gradient_accumulation": 1,
    },
}
METRICS = {
    "test/accuracy": 0.5,
    "test/loss": 1.25,
    "valid/loss": 1.5,
    "base/accuracy": 0.25,
    "forgetting_nats": 0.125,
    "train/loss": 0.75,
    "train/tokens": 400,
    "adapter/trainable_params": 100,
    "adapter/total_params": 1000,
    "adapter/file_bytes": 500,
    "time/train_seconds": 4.0,
    "time/job_seconds": 9.0,
    "memory/job_peak_reserved_bytes": 30,
    "memory/train_reserved_avg_bytes": 10,
    "memory/train_reserved_p99_bytes": 20,
    "memory/job_peak_rss_bytes": 77,
}
EXPERIMENT = "MetaMathQA/experiments/lora/llama-3.2-3b-rank8-lr0.0003"
RESULT = "MetaMathQA/results/lora--llama-3.2-3b-rank8-lr0.0003.json"


def make_job(folder, *, config=CONFIG, adapter=None, **changes):
    known = {"status": Status.OK, "method": "lora", "model": "llama-3.2-3b", "task": "metamath", "seed": 0, "steps": 4}
    known |= {"metrics": METRICS, "intervals": {"test/accuracy": (0.4, 0.6)}, "test_items": "f1", "config": config}
    folder.mkdir(parents=True)
    rows = [{"step": step, "train/loss": float(step)} for step in (1, 2, 3, 4)]
    rows[1]["valid/loss"] = rows[3]["valid/loss"] = 1.5
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if adapter:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    save_result(JobResult(**(known | changes)), folder)
    return folder


def exported(tmp_path, **changes):
    files, notes = export_reference(make_job(tmp_path / "job", **changes), tmp_path / "out")
    return {name: json.loads((tmp_path / "out" / name).read_text()) for name in files}, notes


def test_every_number_of_a_job_comes_back(tmp_path):
    exported(tmp_path)
    (job,) = read_reference(tmp_path / "out").jobs
    assert job.result.metrics == METRICS
    assert job.result.intervals == {"test/accuracy": (0.4, 0.6)}
    assert (job.result.task_version, job.result.test_items) == (1, "f1")


def test_numbers_stand_where_the_benchmark_looks_for_them(tmp_path):
    files, _ = exported(tmp_path)
    train, last = files[RESULT]["train_info"], files[RESULT]["train_info"]["metrics"][-1]
    assert (train["accelerator_memory_max"], train["file_size"], train["num_trainable_params"]) == (30, 500, 100)
    assert (train["status"], files[RESULT]["run_info"]["error_msg"]) == ("success", "")
    assert (last["test accuracy"], last["forgetting"], last["train samples"]) == (0.5, 0.125, 8)


def test_a_loss_there_is_the_mean_since_the_validation_before(tmp_path):
    files, _ = exported(tmp_path)
    entries = files[RESULT]["train_info"]["metrics"]
    assert [(entry["step"], entry["train loss"]) for entry in entries] == [(2, 1.5), (4, 3.5), (4, 3.5)]


def test_the_experiment_holds_the_settings_of_the_run(tmp_path):
    files, notes = exported(tmp_path)
    params = files[f"{EXPERIMENT}/training_params.json"]
    assert params["optimizer_kwargs"] == {"lr": 3e-4, "weight_decay": 0.1, "eps": 1e-6}
    assert (params["max_steps"], params["lr_scheduler"]) == (4, "cosine")
    assert files[RESULT]["run_info"]["train_config"]["query_template"] == "Q: {query}\nA:"
    assert any("train_time" in note for note in notes)


def test_this_package_reads_the_experiment_as_a_method(tmp_path):
    from peftsweep.exchange.experiments import read_hparams, read_method

    exported(tmp_path, adapter={"peft_type": "LORA", "r": 8})
    folder = tmp_path / "out" / EXPERIMENT
    assert read_hparams(folder)["lr"] == 3e-4
    assert read_method(folder).peft["r"] == 8


def test_the_adapter_s_configuration_names_the_model_not_a_folder_of_this_machine(tmp_path):
    saved = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "/home/me/model", "inference_mode": True}
    files, _ = exported(tmp_path, adapter=saved)
    written = files[f"{EXPERIMENT}/adapter_config.json"]
    assert (written["base_model_name_or_path"], written["inference_mode"]) == ("meta-llama/Llama-3.2-3B", False)
    assert "/home/me" not in (tmp_path / "out" / RESULT).read_text()


def test_ranks_that_training_found_are_no_setting_of_the_experiment(tmp_path):
    saved = {"peft_type": "ADALORA", "target_r": 8, "rank_pattern": {"q_proj": [True]}}
    files, _ = exported(tmp_path, adapter=saved)
    assert "rank_pattern" not in files[f"{EXPERIMENT}/adapter_config.json"]
    assert files[RESULT]["run_info"]["peft_config"]["rank_pattern"] == {"q_proj": [True]}


def test_full_fine_tuning_has_no_adapter_config(tmp_path):
    files, _ = exported(tmp_path, config=CONFIG | {"method": {"name": "full", "peft_type": None}}, method="full")
    assert not any(name.endswith("adapter_config.json") for name in files)
    assert files["MetaMathQA/results/full--llama-3.2-3b-lr0.0003.json"]["run_info"]["peft_config"] is None


def test_an_optimizer_of_a_method_is_an_optimizer_type_there(tmp_path):
    method = CONFIG["method"] | {"hook": {"name": "lora_plus", "kwargs": {"lr_ratio": 16.0}}}
    files, _ = exported(tmp_path, config=CONFIG | {"method": method})
    params = files[f"{EXPERIMENT}/training_params.json"]
    assert params["optimizer_type"] == "lora+"
    assert params["optimizer_kwargs"]["loraplus_lr_ratio"] == 16.0


def test_what_was_not_measured_is_null_and_told(tmp_path):
    metrics = {key: value for key, value in METRICS.items() if not key.startswith("memory/")}
    files, notes = exported(tmp_path, metrics=metrics)
    assert files[RESULT]["train_info"]["accelerator_memory_max"] is None
    assert any("memory/job_peak_reserved_bytes" in note for note in notes)


def test_what_their_script_can_not_do_is_told(tmp_path):
    hparams = CONFIG["hparams"] | {"gradient_accumulation": 4, "warmup_fraction": 0.03}
    _, notes = exported(tmp_path, config=CONFIG | {"hparams": hparams}, seed=3)
    told = " ".join(notes)
    assert "accumulation" in told
    assert "warms up" in told
    assert "seed 3" in told


def test_a_failed_job_keeps_its_cause(tmp_path):
    exported(tmp_path, status=Status.OOM, cause="CUDA out of memory", metrics={})
    (job,) = read_reference(tmp_path / "out").jobs
    assert (job.result.status, job.result.cause) == (Status.OOM, "CUDA out of memory")


def test_a_task_that_the_benchmark_lacks_is_refused(tmp_path):
    with pytest.raises(DataError, match="sft"):
        exported(tmp_path, task="sft")


def comparable(value):
    """A published file as JSON can hold it: numbers that nobody measured are null or absent."""
    if isinstance(value, dict):
        return {k: comparable(v) for k, v in value.items() if not (isinstance(v, float) and math.isnan(v))}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return None if value == 99999999 else value


@pytest.mark.skipif(not REFERENCE, reason="PEFTSWEEP_REFERENCE names no method_comparison folder of the PEFT library")
def test_a_published_file_comes_back_as_it_was(tmp_path):
    for job in read_reference(Path(REFERENCE)).jobs:
        files, _ = export_reference(write_reference(job, tmp_path / "jobs"), tmp_path / "out")
        (name,) = (name for name in files if "/results/" in name)
        assert json.loads((tmp_path / "out" / name).read_text()) == comparable(job.source), name


@pytest.mark.skipif(not REFERENCE, reason="PEFTSWEEP_REFERENCE names no method_comparison folder of the PEFT library")
def test_an_export_is_made_of_the_job_not_of_the_file_it_came_from(tmp_path):
    job = next(job for job in read_reference(Path(REFERENCE)).jobs if job.result.task == "metamath")
    folder = write_reference(job, tmp_path / "jobs")
    job.result.metrics["test/accuracy"] = 0.987
    save_result(job.result, folder)
    export_reference(folder, tmp_path / "out")
    (again,) = read_reference(tmp_path / "out").jobs
    assert again.result.metrics["test/accuracy"] == 0.987
