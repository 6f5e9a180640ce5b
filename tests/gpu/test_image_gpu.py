"""Jobs on pictures on a CUDA device. Nothing here asserts a time or a similarity."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import ModelConfig
from peftsweep.job.run import run_job
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.loading import load_base
from peftsweep.records.results import JobResult, Status

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SMALL = [
    "device=cuda:0",
    "allow_shared_gpu=true",
    "tracking=none",
    "task=image-gen",
    "method=lora",
    "task.inference_steps=2",
    "task.test_photos=2",
    "task.valid_photos=2",
    "task.drift_prompts=[a red circle,a blue square]",
    "hparams.max_steps=6",
    "hparams.eval_every=3",
]
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")

Run = Callable[..., JobResult]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def job(*overrides: str) -> JobResult:
        folder = tmp_path / f"job-{len(list(tmp_path.glob('job-*')))}"
        config = build_config(compose_config([*SMALL, f"cache={tmp_path / 'cache'}", *overrides]))
        return run_job(config, folder)

    return job


def pocket(device: torch.device, dtype: str = "float32") -> BaseModel:
    return load_base(ModelConfig("pocket-flux2", "image", "embedded", dtype=dtype), device)


def drawn(base: BaseModel) -> np.ndarray:
    assert base.parts
    layers, prompts = [2, 3, 4], ["a red circle on grass", "a blue square", ""]
    encoded = base.parts.encode_prompts(prompts, max_tokens=32, layers=layers)
    settings = {"resolution": 64, "steps": 4, "guidance": 3.5, "batch_size": 2}
    return base.parts.generate(base.model, encoded[:2], encoded[2:], [1, 2], **settings)


@pytest.mark.parametrize("method", ["lora", "oft", "full"])
def test_a_job_on_pictures_is_measured_on_the_device(run: Run, method: str) -> None:
    result = run(f"method={method}")
    assert result.status is Status.OK
    assert result.metrics["memory/train_peak_reserved_bytes"] > 0
    assert result.metrics["memory/job_peak_reserved_bytes"] >= result.metrics["memory/train_peak_reserved_bytes"]
    assert {"test/dino_similarity", "drift"} <= result.metrics.keys()


@pytest.mark.parametrize(
    "extra", [(), ("hparams.gradient_checkpointing=true",), ("hparams.amp=true", "model.dtype=float32")]
)
def test_a_bfloat16_pipeline_trains(run: Run, tmp_path: Path, extra: tuple[str, ...]) -> None:
    assert run("model.dtype=bfloat16", *extra).status is Status.OK
    lines = map(json.loads, (tmp_path / "job-0/history.jsonl").read_text().splitlines())
    assert all(np.isfinite(line["train/loss"]) for line in lines if "train/loss" in line)


def test_a_seed_draws_the_same_picture_on_every_device() -> None:
    on_cuda, on_cpu = (drawn(pocket(device)).astype(int) for device in (CUDA, CPU))
    assert np.abs(on_cuda - on_cpu).mean() < 2  # of 255


def test_text_encoder_and_vae_leave_no_memory_on_the_device() -> None:
    base = pocket(CUDA, "bfloat16")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    drawn(base)
    assert base.parts
    base.parts.encode_images(torch.zeros(2, 3, 64, 64))
    assert torch.cuda.memory_allocated() == before
