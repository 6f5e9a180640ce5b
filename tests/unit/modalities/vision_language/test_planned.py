"""What a plan and a preview know of pictures, on a tiny model whose weights are never loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_vlm import save_tiny_vlm, write_questions

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import JobConfig
from peftsweep.job.plan.planner import MemoryPlan, Planner
from peftsweep.modalities.base import modality_of

Compose = Callable[..., JobConfig]


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Compose:
    folder = tmp_path_factory.mktemp("plan")
    model, data = save_tiny_vlm(folder / "model"), write_questions(folder / "data", numbered=True)

    def compose(*overrides: str) -> JobConfig:
        settings = [f"model.id={model}", f"task.train_files={data}", "model.dtype=float32", "hparams.max_seq_length=64"]
        return build_config(compose_config(["task=vqa", "model=vlm", "method.capacity=4", *settings, *overrides]))

    return compose


def plan(config: JobConfig) -> MemoryPlan:
    return Planner(config).plan()


def test_the_longest_row_counts_the_tokens_of_its_picture(compose: Compose) -> None:
    found = plan(compose())
    assert found.tokens == 24  # 4 of the picture and 3 around it, 15 of the question with the template's, 2 to learn
    assert "7 of them of pictures" in " ".join(found.notes)


def test_evaluation_is_followed_too(compose: Compose) -> None:
    assert (plan(compose()).eval_least_bytes or 0) > 0


def test_what_is_trained_of_the_vision_tower_takes_memory(compose: Compose) -> None:
    plans = [plan(compose(f"model.adapt={adapt}")) for adapt in ("language", "language+connector", "all")]
    assert plans[0].trainable_params < plans[1].trainable_params < plans[2].trainable_params
    assert plans[0].train_allocated_bytes < plans[2].train_allocated_bytes


def test_the_tower_sees_as_many_pictures_as_rows(compose: Compose) -> None:
    few, many = (plan(compose("model.adapt=all", f"hparams.batch_size={rows}")) for rows in (2, 16))
    assert many.parts["activations"] > 4 * few.parts["activations"]


def test_settings_that_do_not_go_together_are_told(compose: Compose) -> None:
    config = compose()
    config.task.loss_on = "all"  # type: ignore[attr-defined]
    config.task.template = "no place for it"  # type: ignore[attr-defined]
    told = " ".join(str(problem) for problem in modality_of(config.task).problems(config))
    assert "task.loss_on" in told
    assert "task.template" in told


def test_a_preview_tells_pictures_and_marks_what_is_judged(compose: Compose) -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    config: Any = compose()
    for part in modality_of(config.task).preview(config, 1):
        console.print(part)
    told = console.export_text()
    assert "<image> x 4" in told
    assert "«blue <end_of_utterance>»" in told.replace("\n", "")
    assert Path(config.task.train_files).parent.name in told
