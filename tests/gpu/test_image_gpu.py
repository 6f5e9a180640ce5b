"""Jobs on pictures on a CUDA device. Nothing here asserts a time or a similarity."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from on_cuda import DEVICE, Jobs, settled_bytes

from peftsweep.config.schema import ModelConfig
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.loading import load_base
from peftsweep.records.results import Status

PICTURES = (
    "task=image-gen",
    "method=lora",
    "task.inference_steps=2",
    "task.test_photos=2",
    "task.valid_photos=2",
    "task.drift_prompts=[a red circle,a blue square]",
    "hparams.max_steps=6",
    "hparams.eval_every=3",
)
CUDA, CPU = torch.device(DEVICE), torch.device("cpu")
SCHEDULE_BYTES = 2 * 512  # the few noise levels of the last picture, which diffusers leaves where it was drawn

Note = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path, PICTURES)


def pocket(device: torch.device, dtype: str = "float32") -> BaseModel:
    return load_base(ModelConfig("pocket-flux2", "image", "embedded", dtype=dtype), device)


def drawn(base: BaseModel) -> np.ndarray:
    assert base.parts
    layers, prompts = [2, 3, 4], ["a red circle on grass", "a blue square", ""]
    encoded = base.parts.encode_prompts(prompts, max_tokens=32, layers=layers)
    settings = {"resolution": 64, "steps": 4, "guidance": 3.5, "batch_size": 2}
    return base.parts.generate(base.model, encoded[:2], encoded[2:], [1, 2], **settings)


@pytest.mark.parametrize("method", ["lora", "oft", "full"])
def test_a_job_on_pictures_is_measured_on_the_device(run: Jobs, method: str, noted: Note) -> None:
    result = run(f"method={method}")
    train, job = (result.metrics[f"memory/{part}_peak_reserved_bytes"] for part in ("train", "job"))
    noted(planned_bytes=result.metrics["plan/train_peak_bytes"], measured_bytes=train, job_bytes=job)
    assert result.status is Status.OK
    assert 0 < train <= job
    assert {"test/dino_similarity", "drift"} <= result.metrics.keys()


@pytest.mark.parametrize(
    "extra", [(), ("hparams.gradient_checkpointing=true",), ("hparams.amp=true", "model.dtype=float32")]
)
def test_a_bfloat16_pipeline_trains(run: Jobs, extra: tuple[str, ...]) -> None:
    assert run("model.dtype=bfloat16", *extra).status is Status.OK
    assert all(map(math.isfinite, run.losses(0)))


def test_a_seed_draws_the_same_picture_on_every_device() -> None:
    on_cuda, on_cpu = (drawn(pocket(device)).astype(int) for device in (CUDA, CPU))
    assert np.abs(on_cuda - on_cpu).mean() < 2  # of 255


def test_text_encoder_and_vae_leave_no_memory_on_the_device(noted: Note) -> None:
    base = pocket(CUDA, "bfloat16")
    assert base.parts
    held = [settled_bytes()]
    for _ in range(2):
        drawn(base)
        base.parts.encode_images(torch.zeros(2, 3, 64, 64))
        held.append(settled_bytes())
    before, once, twice = held
    noted(left_bytes=once - before)
    assert once - before <= SCHEDULE_BYTES
    assert twice == once
