"""A trained job asked again, and asked something else."""

import json

import pytest
import torch

from peftsweep.errors import ConfigError, OutputError
from peftsweep.exchange.finished import open_job
from peftsweep.job.display import Display
from peftsweep.job.rescoring import ask_job, is_unscored
from peftsweep.records.results import load_result

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", ["lora", "full", "adalora"])
def test_asked_the_same_a_job_answers_the_same(method, finished, tmp_path):
    job = open_job(finished(method))
    assert not is_unscored(job)
    folder, scores = ask_job(job, [], tmp_path / "again", CPU, Display())
    for name in ("test/accuracy", "test/loss"):
        assert scores.metrics[name] == pytest.approx(job.result.metrics[name], rel=1e-5)
    told = json.loads((folder / "scores.json").read_text())
    assert told["test_items"] == job.result.test_items
    assert (folder / "predictions.jsonl").read_text() == (job.folder / "predictions.jsonl").read_text()


def test_other_questions_leave_the_result_as_it_was(finished, tmp_path):
    job = open_job(finished("lora"))
    before = load_result(job.folder)
    rows = [{"prompt": f"Say {number}.", "response": str(number)} for number in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["task=sft", f"task.train_files={tmp_path}/rows.jsonl", "task.max_new_tokens=2", "task.general_rows=0"]
    asked.append("task.base_score=true")
    folder, scores = ask_job(job, asked, None, CPU, Display())
    assert folder.parent == job.folder / "evaluations"
    assert {"test/exact_match", "base/exact_match"} <= scores.metrics.keys()
    assert json.loads((folder / "scores.json").read_text())["task"]["name"] == "sft"
    assert load_result(job.folder) == before


def test_what_was_trained_can_not_be_changed_afterwards(finished, tmp_path):
    with pytest.raises(ConfigError, match=r"asked other questions, not trained otherwise, got 'hparams\.lr=1'"):
        ask_job(open_job(finished("lora")), ["hparams.lr=1"], tmp_path / "out", CPU, Display())


def test_a_wrong_question_is_told_before_anything_is_loaded(finished, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no such setting.*task\.test_rowss"):
        ask_job(open_job(finished("lora")), ["task.test_rowss=1"], tmp_path / "out", CPU, Display())


def test_an_evaluation_writes_over_nothing(finished, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(OutputError, match="must be empty"):
        ask_job(open_job(finished("lora")), [], tmp_path, CPU, Display())
