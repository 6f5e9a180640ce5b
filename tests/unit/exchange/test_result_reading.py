"""Results of the PEFT library's benchmark as jobs: names, units, what is missing, how a run ended."""

import json
import math
import os
from pathlib import Path

import pytest

from peftsweep.commands.import_results import run
from peftsweep.errors import DataError
from peftsweep.exchange.result_reading import read_reference, write_reference
from peftsweep.records.metrics import METRICS
from peftsweep.records.results import Stage, Status, load_result
from tests.benchmark_results import image_file, text_file

REFERENCE = os.environ.get("PEFTSWEEP_REFERENCE")
needs_reference = pytest.mark.skipif(
    not REFERENCE, reason="PEFTSWEEP_REFERENCE names no method_comparison folder of the PEFT library"
)


def read_one(tmp_path, content):
    folder = tmp_path / "MetaMathQA" / "results"
    folder.mkdir(parents=True)
    (folder / "lora--rank8.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_reference(tmp_path)


def result_of(tmp_path, content):
    (job,) = read_one(tmp_path, content).jobs
    return job.result


def test_numbers_stand_under_the_metric_that_means_the_same(tmp_path):
    metrics = result_of(tmp_path, text_file()).metrics
    assert metrics["test/accuracy"] == 0.5
    assert metrics["forgetting_nats"] == -0.01
    assert metrics["valid/accuracy"] == 0.3
    assert metrics["train/loss"] == 0.7
    assert metrics["adapter/trainable_params"] == 100
    assert metrics["adapter/file_bytes"] == 500
    assert metrics["time/job_seconds"] == 100.0
    assert metrics["memory/train_reserved_avg_bytes"] == 10
    assert metrics["memory/train_reserved_p99_bytes"] == 20
    assert metrics.keys() <= METRICS.keys()


def test_training_time_is_that_of_the_steps_not_of_tokenising_and_testing(tmp_path):
    metrics = result_of(tmp_path, text_file(train_time=60.0)).metrics
    assert metrics["time/train_seconds"] == 4.0
    assert metrics["train/tokens_per_second"] == 1000.0


def test_training_time_is_absent_where_the_last_steps_have_none(tmp_path):
    metrics = result_of(tmp_path, image_file()).metrics
    assert "time/train_seconds" not in metrics


def test_the_memory_key_means_the_whole_job_for_text(tmp_path):
    metrics = result_of(tmp_path, text_file()).metrics
    assert metrics["memory/job_peak_reserved_bytes"] == 30
    assert "memory/train_peak_reserved_bytes" not in metrics


def test_the_memory_key_means_training_for_images(tmp_path):
    metrics = result_of(tmp_path, image_file()).metrics
    assert metrics["memory/train_peak_reserved_bytes"] == 30
    assert "memory/job_peak_reserved_bytes" not in metrics


def test_drift_is_halved_already(tmp_path):
    metrics = result_of(tmp_path, image_file()).metrics
    assert (metrics["drift"], metrics["test/dino_similarity"]) == (0.26, 0.7)


@pytest.mark.parametrize("value", [99999999, 123, None, math.nan, 0])
def test_a_size_that_was_never_measured_is_absent(tmp_path, value):
    assert "adapter/file_bytes" not in result_of(tmp_path, text_file(file_size=value)).metrics


def test_a_score_of_zero_is_a_score(tmp_path):
    metrics = [{"step": 20, "test accuracy": 0.0, "forgetting": 0.0}]
    found = result_of(tmp_path, text_file(metrics=metrics)).metrics
    assert (found["test/accuracy"], found["forgetting_nats"]) == (0.0, 0.0)


def test_one_run_stays_one_run_without_an_interval(tmp_path):
    result = result_of(tmp_path, text_file())
    assert (result.seed, result.stage, result.study, result.intervals) == (0, Stage.SINGLE, None, {})


def test_a_reference_result_is_marked_and_never_taken_for_a_version_of_the_own_task(tmp_path):
    result = result_of(tmp_path, text_file())
    assert result.config["origin"] == "reference"
    assert result.environment["reference"] == "f00d"
    assert result.environment["gpu"] == "NVIDIA L40S"
    assert (result.task_version, result.test_items) == (0, None)


def test_settings_stand_under_the_keys_of_this_package(tmp_path):
    result = result_of(tmp_path, text_file())
    assert (result.method, result.model, result.task) == ("lora--rank8", "llama-3.2-3b", "metamath")
    assert result.config["task"]["template"] == "Q: {prompt}\nA:"
    assert result.config["hparams"]["lr"] == 3e-4
    assert result.config["hparams"]["optimizer_kwargs"] == {"eps": 1e-6}
    assert result.config["hparams"]["warmup_fraction"] == 0.1
    method = result.config["method"]
    assert (method["peft_type"], method["capacity"], method["capacity_knob"]) == ("LORA", 8, "rank")
    assert method["peft"] == {"r": 8, "lora_alpha": 16}


def test_no_schedule_is_a_constant_one_without_warm_up(tmp_path):
    hparams = result_of(tmp_path, image_file()).config["hparams"]
    assert (hparams["scheduler"], hparams["warmup_fraction"]) == ("constant", 0.0)


def test_full_fine_tuning_has_no_peft_type_and_no_capacity(tmp_path):
    method = result_of(tmp_path, text_file(peft_config=None)).config["method"]
    assert (method["peft_type"], method["capacity"], method["peft"]) == (None, None, {})


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", Status.OOM),
        ("manually canceled", Status.INTERRUPTED),
        ("shapes differ", Status.FAILED),
        ("", Status.FAILED),
    ],
)
def test_a_cancelled_run_is_a_result_with_its_cause(tmp_path, message, status):
    result = result_of(tmp_path, text_file(status="canceled", error_msg=message, metrics=[]))
    assert result.status is status
    assert result.cause
    assert message in result.cause


def test_cancelled_results_are_read_too(tmp_path):
    folder = tmp_path / "MetaMathQA" / "cancelled_results"
    folder.mkdir(parents=True)
    (folder / "lora--rank8--2026.json").write_text(json.dumps(text_file(status="canceled")))
    assert len(read_reference(tmp_path).jobs) == 1


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ('{"run_info": ', "readable JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "must hold run_info"),
        ({"run_info": {}, "train_info": {}}, "laid out"),
        ({"run_info": {"train_config": {"seed": 0}}, "train_info": {}}, "MetaMathQA or image-gen"),
    ],
)
def test_a_file_of_another_kind_is_told_and_the_others_are_read(tmp_path, content, rule):
    found = read_one(tmp_path, content)
    assert found.jobs == []
    assert rule in found.unreadable[0]
    assert "lora--rank8.json" in found.unreadable[0]


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="method_comparison"):
        read_reference(tmp_path)


def test_the_job_s_folder_reads_like_any_other(tmp_path):
    (job,) = read_one(tmp_path, text_file()).jobs
    folder = write_reference(job, tmp_path / "reference")
    assert folder == tmp_path / "reference" / "metamath" / "lora--rank8"
    assert load_result(folder) == job.result
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert history == [
        {"step": 10, "valid/accuracy": 0.3, "train/loss": 0.9},
        {"step": 20, "valid/accuracy": 0.3, "train/loss": 0.7},
    ]


def test_the_command_tells_what_it_could_not_read(tmp_path, capsys):
    read_one(tmp_path / "there", text_file())
    (tmp_path / "there" / "MetaMathQA" / "results" / "broken.json").write_text("{")
    assert run(["hf", str(tmp_path / "there"), "--into", str(tmp_path / "here")]) == 1
    printed = capsys.readouterr().out
    assert "1 results read" in printed
    assert "broken.json" in printed


@needs_reference
def test_every_published_file_is_read():
    found = read_reference(Path(REFERENCE))
    files = [path for path in Path(REFERENCE).rglob("*.json") if path.parent.name.endswith("results")]
    assert found.unreadable == []
    assert len(found.jobs) == len(files) > 0
    assert {job.result.task for job in found.jobs} == {"metamath", "image-gen"}


@needs_reference
def test_published_figures_are_those_of_its_table():
    """LoRA of rank 32 on MetaMathQA: 47.8%, 20.76 GiB, 9,175,040 parameters, forgetting 0.050."""
    jobs = {job.result.method: job.result for job in read_reference(Path(REFERENCE)).jobs}
    metrics = jobs["lora--llama-3.2-3B-rank32"].metrics
    assert round(metrics["test/accuracy"], 3) == 0.478
    assert round(metrics["memory/job_peak_reserved_bytes"] / 2**30, 2) == 20.76
    assert metrics["adapter/trainable_params"] == 9_175_040
    assert round(metrics["forgetting_nats"], 3) == 0.050


@needs_reference
def test_published_drift_is_halved_as_here():
    """1 - 2 drift is a mean of float32 cosines, so it is a float32; of an unhalved drift, 1 - drift would be one."""
    import numpy as np

    drifts = [
        job.result.metrics["drift"] for job in read_reference(Path(REFERENCE)).jobs if "drift" in job.result.metrics
    ]
    assert len(drifts) > 10
    assert all(float(np.float32(1 - 2 * drift)) == 1 - 2 * drift for drift in drifts)
    assert not all(float(np.float32(1 - drift)) == 1 - drift for drift in drifts)
