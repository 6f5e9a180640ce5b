"""Whole jobs of encoders and of questions about pictures on a CUDA device, and the same on the host."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from on_cuda import DEVICE, Jobs

from peftsweep.config.schema import EMBEDDED, HparamsConfig
from peftsweep.modalities.base import modality_of
from peftsweep.modalities.loading import load_base
from peftsweep.modalities.vision_language.settings import VlmConfig, VqaConfig
from peftsweep.records.results import Status

Note = Callable[..., None]
FEW = ("hparams.max_steps=10", "task.test_rows=40", "task.valid_rows=32", "task.general_rows=8")
TASKS = ("classify", "tag", "vqa")


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("task", TASKS)
def test_a_job_learns_the_same_as_on_the_host(task: str, method: str, tmp_path: Path, noted: Note) -> None:
    run = Jobs(tmp_path, (*FEW, f"task={task}", f"method={method}"))
    there, here = run(), run("device=cpu")
    assert there.status is here.status is Status.OK
    noted(planned_bytes=there.metrics["plan/train_peak_bytes"],
          measured_bytes=there.metrics["memory/train_peak_reserved_bytes"])  # fmt: skip
    assert there.metrics["valid/loss"] == pytest.approx(here.metrics["valid/loss"], rel=0.02)
    assert json.loads((run.last / "predictions.jsonl").read_text().splitlines()[0]).keys() >= {"target", "correct"}


@pytest.mark.parametrize("task", TASKS)
def test_a_bfloat16_job_ends_well(task: str, tmp_path: Path) -> None:
    result = Jobs(tmp_path, (*FEW, f"task={task}"))("model.dtype=bfloat16")
    assert result.status is Status.OK


def test_what_the_tower_made_of_pictures_waits_on_the_host_and_gives_the_same_loss(tmp_path: Path) -> None:
    spec, config = VlmConfig("pocket-vlm", "vision_language", EMBEDDED, dtype="float32"), VqaConfig(name="vqa")
    base = load_base(spec, torch.device(DEVICE))
    task = modality_of(config).build_task(config, HparamsConfig(max_seq_length=128), base, tmp_path)
    kept = next(task.train_batches(4, seed=0))
    assert all(row.device.type == "cpu" for row in kept["mm_encoder_outputs"].rows)
    once = task.loss(base.model, kept).sum
    task._reader.look_with(None)
    assert torch.isclose(once, task.loss(base.model, next(task.train_batches(4, seed=0))).sum, rtol=1e-4)
