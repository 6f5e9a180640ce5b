"""One job, a grid of jobs, and a grid in which one fails, as real command lines on the embedded model."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

SMALL = [
    "device=cpu",
    "task=metamath",
    "task.train_rows=16",
    "task.valid_rows=8",
    "task.test_rows=4",
    "task.max_new_tokens=8",
    "task.general_rows=4",
    "hparams.max_steps=2",
    "hparams.batch_size=4",
    "tracking=none",
]
FILES = {"config.yaml", ".hydra", "result.json", "predictions.jsonl", "history.jsonl", "adapter", "job.log"}


@pytest.fixture(scope="module")
def job(tmp_path_factory, command_line):
    """One finished job: where it ran, and what it printed."""
    line = command_line(tmp_path_factory.mktemp("one"))
    return line, line.run("method=lora", *SMALL, "task.base_score=true", "hydra.run.dir=job")


@pytest.fixture(scope="module")
def grid(tmp_path_factory, command_line):
    """Two methods in one process."""
    line = command_line(tmp_path_factory.mktemp("grid"))
    return line, line.run("-m", "method=full,lora", *SMALL, "hydra.sweep.dir=jobs")


def test_a_job_leaves_all_its_files(job):
    line, _ = job
    assert {path.name for path in (line.folder / "job").iterdir()} >= FILES
    assert list(line.folder.rglob("*.partial*")) == []


def test_a_jobs_result_is_ok_and_measured(job):
    line, _ = job
    result = line.result("job")
    assert (result["status"], result["method"], result["model"], result["steps"]) == ("ok", "lora", "pocket-llama", 2)
    measured = {"test/accuracy", "base/accuracy", "test/loss", "valid/loss", "forgetting_nats", "adapter/file_bytes"}
    measured |= {"adapter/trainable_params", "memory/job_peak_rss_bytes", "time/train_seconds", "time/job_seconds"}
    assert measured <= result["metrics"].keys()
    assert "test/accuracy" in result["intervals"]


def test_a_job_keeps_one_prediction_an_item(job):
    line, _ = job
    lines = (line.folder / "job/predictions.jsonl").read_text().splitlines()
    assert [set(json.loads(text)) for text in lines] == [{"prompt", "target", "generated", "parsed", "correct"}] * 4


def test_a_jobs_history_has_every_step(job):
    line, _ = job
    assert [entry["step"] for entry in line.history("job") if "train/loss" in entry] == [1, 2]


def test_a_job_ends_with_its_table_and_where_its_files_are(job):
    _, printed = job
    for words in ("test accuracy", "before training", "forgetting", "whole job", "trainable parameters"):
        assert words in printed
    assert "files   job" in printed


def test_a_jobs_adapter_loads_with_peft_alone(job):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from peftsweep.modalities.text.pocket import LLAMA_FOLDER

    line, _ = job
    base = AutoModelForCausalLM.from_pretrained(LLAMA_FOLDER, dtype="float32")
    model = PeftModel.from_pretrained(base, line.folder / "job/adapter")
    trained = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert trained
    assert any(weight.abs().sum() > 0 for weight in trained)


def test_a_grid_gives_complete_jobs(grid):
    line, _ = grid
    results = [line.result(f"jobs/{number}") for number in range(2)]
    assert [(result["status"], result["method"]) for result in results] == [("ok", "full"), ("ok", "lora")]
    for number in range(2):
        assert {path.name for path in (line.folder / "jobs" / str(number)).iterdir()} >= FILES


def logged(line, words: str):
    logs = [path.read_text() for path in sorted(line.folder.glob("jobs/*/job.log"))]
    return sum(log.count(words) for log in logs)


def test_a_grid_loads_the_base_model_and_tokenises_the_data_once(grid):
    line, _ = grid
    assert logged(line, "Loaded pocket-llama") == 1
    assert logged(line, "Tokenised") == 4  # general text, training, validation, test


def test_the_methods_of_a_grid_differ(grid):
    line, _ = grid
    assert line.result("jobs/0")["metrics"]["test/loss"] != line.result("jobs/1")["metrics"]["test/loss"]


def test_a_job_after_full_fine_tuning_is_the_same_job_alone(job, grid):
    """So each job of a grid starts from an untouched base model."""
    alone, last = job[0].result("job"), grid[0].result("jobs/1")
    for metric in ("test/loss", "valid/loss", "forgetting_nats", "train/loss"):
        assert alone["metrics"][metric] == last["metrics"][metric]


@pytest.mark.slow
def test_a_job_that_fails_does_not_stop_the_others(tmp_path, tiny_job, command_line):
    line = command_line(tmp_path)
    settings = [setting for setting in tiny_job if "lora" not in setting]
    unsafe = ["method=full", "hparams.max_grad_norm=0", "hparams.warmup_fraction=0", "hparams.max_steps=4"]
    printed = line.run("-m", "hparams.lr=1e36,1e-3", *settings, *unsafe, "hydra.sweep.dir=jobs", code=1)
    first, second = line.result("jobs/0"), line.result("jobs/1")
    assert (first["status"], second["status"]) == ("failed", "ok")
    assert "at step" in first["cause"]
    assert first["cause"] in " ".join(printed.split())


def test_settings_are_shown_without_running(tmp_path, command_line):
    printed = command_line(tmp_path).run("--cfg", "job", "--resolve", "method=lily")
    assert "name: lily" in printed
    assert list(Path(tmp_path).iterdir()) == []
