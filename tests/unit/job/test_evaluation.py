import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from peftsweep.config.schema import ModelConfig
from peftsweep.job import evaluation as evaluate
from peftsweep.job.evaluation import BaseMeasure, BaseScore, base_score_wanted, evaluate_job, measure_base
from peftsweep.modalities.base import BaseModel, Evaluation
from peftsweep.records.results import Stage

PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
MODEL = nn.Linear(1, 1)
TESTED = Evaluation(
    {"accuracy": 0.5, "loss": 1.25},
    {"accuracy": (0.25, 0.75)},
    [{"prompt": "½?", "generated": "yes", "correct": True}],
    {"do_sample": False},
)


class Task:
    """A task that counts how often it is evaluated."""

    def __init__(self, fingerprint: str = "items") -> None:
        self.fingerprint = fingerprint
        self.evaluated: list[str] = []
        self.general_text = "general text"
        self.times_measured = 0
        self.tested = TESTED

    def retention_key(self) -> str:
        return self.general_text

    def measure_retention(self, model: nn.Module) -> float:
        self.times_measured += 1
        return 2.0

    def compare_retention(self, before: float, after: float) -> dict[str, float]:
        return {"forgetting_nats": after - before}

    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        self.evaluated.append(split)
        return self.tested

    def pictures(self, before: Evaluation | None, after: Evaluation) -> dict[str, np.ndarray]:
        return {"contact_sheet": PICTURE} if after.images else {}

    def test_fingerprint(self) -> str:
        if self.fingerprint == "unread":
            raise AssertionError("test data was read")
        return self.fingerprint


def measure(
    task: Any, cache: Path, model_key: str = "model", *, score: BaseScore = BaseScore.YES, attention: str | None = None
) -> BaseMeasure:
    base = BaseModel(MODEL, None, model_key, is_embedded=True)
    model = ModelConfig(dtype="float32", attn_implementation=attention)
    return measure_base(task, base, model, score, cache)


def test_the_base_score_is_computed_once(tmp_path: Path) -> None:
    task = Task()
    first, second = measure(task, tmp_path), measure(task, tmp_path)
    assert first == second == BaseMeasure(2.0, TESTED)
    assert task.evaluated == ["test"]


def test_a_base_score_that_nobody_asked_for_is_read_where_it_is_known(tmp_path: Path) -> None:
    task = Task()
    assert measure(task, tmp_path, score=BaseScore.IF_KNOWN) == BaseMeasure(2.0)
    measure(task, tmp_path)
    assert measure(task, tmp_path, score=BaseScore.IF_KNOWN) == BaseMeasure(2.0, TESTED)
    assert task.evaluated == ["test"]


@pytest.mark.parametrize(
    ("asked", "stage", "wanted"),
    [
        (None, Stage.SINGLE, BaseScore.IF_KNOWN),
        (True, Stage.SINGLE, BaseScore.YES),
        (False, Stage.SINGLE, BaseScore.NO),
        (None, Stage.CONFIRM, BaseScore.YES),
        (False, Stage.CONFIRM, BaseScore.NO),
        (True, Stage.TUNE, BaseScore.NO),
    ],
)
def test_the_base_is_scored_in_sweeps_and_where_it_is_asked_for(
    asked: bool | None, stage: Stage, wanted: BaseScore
) -> None:
    assert base_score_wanted(asked, stage) is wanted


def test_pictures_of_the_base_come_back_from_the_cache(tmp_path: Path) -> None:
    task = Task()
    task.tested = dataclasses.replace(TESTED, images={"00-0": PICTURE, "00-1": 255 - PICTURE})
    measure(task, tmp_path)
    found = measure(task, tmp_path).evaluation
    assert task.evaluated == ["test"]
    assert found is not None
    assert {name: picture.tolist() for name, picture in found.images.items()} == {
        "00-0": PICTURE.tolist(),
        "00-1": (255 - PICTURE).tolist(),
    }


def test_a_base_score_whose_pictures_are_gone_is_computed_anew(tmp_path: Path) -> None:
    task = Task()
    task.tested = dataclasses.replace(TESTED, images={"00-0": PICTURE})
    measure(task, tmp_path)
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"torn")
    assert measure(task, tmp_path).evaluation is not None
    assert task.evaluated == ["test", "test"]


def test_judged_pictures_are_told_apart_from_those_of_the_base() -> None:
    task = Task()
    task.tested = dataclasses.replace(TESTED, images={"00-0": PICTURE})
    scores = evaluate_job(task, MODEL, BaseMeasure(2.0, task.tested), read_test=True)  # type: ignore[arg-type]
    assert sorted(scores.images) == ["base/00-0", "test/00-0"]
    assert list(scores.pictures) == ["contact_sheet"]


def test_what_the_base_knows_is_measured_once_a_process_for_each_model_and_text(tmp_path: Path) -> None:
    task = Task()
    for _ in range(3):
        measure(task, tmp_path, model_key="a base of this test")
    assert task.times_measured == 1
    measure(task, tmp_path, model_key="another base")
    task.general_text = "other text"
    measure(task, tmp_path, model_key="another base")
    assert task.times_measured == 3


def test_another_model_or_other_items_are_scored_anew(tmp_path: Path) -> None:
    tasks = [Task(), Task(), Task("other items")]
    measure(tasks[0], tmp_path)
    measure(tasks[1], tmp_path, model_key="other model")
    measure(tasks[2], tmp_path)
    assert [task.evaluated for task in tasks] == [["test"]] * 3


def test_other_kernels_of_attention_answer_otherwise_and_are_scored_anew(tmp_path: Path) -> None:
    task = Task()
    measure(task, tmp_path)
    measure(task, tmp_path, attention="eager")
    assert task.evaluated == ["test", "test"]


def test_products_in_tf32_answer_otherwise_and_are_scored_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task()
    measure(task, tmp_path)
    monkeypatch.setattr("torch.get_float32_matmul_precision", lambda: "high")
    measure(task, tmp_path)
    assert task.evaluated == ["test", "test"]


def test_another_version_of_a_library_is_scored_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task()
    measure(task, tmp_path)
    monkeypatch.setattr(evaluate, "version", lambda name: "99")
    measure(task, tmp_path)
    assert task.evaluated == ["test", "test"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"metrics": {}}', '{"metrics": {}, "intervals": 3}'])
def test_a_broken_entry_is_computed_anew(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = Task()
    measure(task, tmp_path)
    [entry] = (tmp_path / "base").iterdir()
    entry.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert measure(task, tmp_path).evaluation == TESTED
    assert "computed anew" in caplog.text
    assert json.loads(entry.read_text())["metrics"] == TESTED.metrics


def test_tuning_reads_no_test_data_before_training(tmp_path: Path) -> None:
    assert measure(Task("unread"), tmp_path, score=BaseScore.NO) == BaseMeasure(2.0)


def test_tuning_reads_no_test_data_after_training() -> None:
    task: Any = Task("unread")
    scores = evaluate_job(task, MODEL, BaseMeasure(1.5), read_test=False)
    assert scores.metrics == {"forgetting_nats": 0.5}
    assert task.evaluated == []


def test_scores_before_and_after_have_keys_of_their_own() -> None:
    task: Any = Task()
    before = Evaluation({"accuracy": 0.0}, {"accuracy": (0.0, 0.1)}, [{"prompt": "before"}])
    scores = evaluate_job(task, MODEL, BaseMeasure(2.0, before), read_test=True)
    assert scores.metrics == {"forgetting_nats": 0.0, "test/accuracy": 0.5, "test/loss": 1.25, "base/accuracy": 0.0}
    assert scores.intervals == {"test/accuracy": (0.25, 0.75), "base/accuracy": (0.0, 0.1)}
    assert scores.items == TESTED.items
    assert scores.generation_config == {"do_sample": False}


def test_a_base_that_was_not_scored_has_no_score() -> None:
    task: Any = Task()
    metrics = evaluate_job(task, MODEL, BaseMeasure(2.0), read_test=True).metrics
    assert not [key for key in metrics if key.startswith("base/")]
