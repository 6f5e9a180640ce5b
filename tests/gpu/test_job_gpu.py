"""Whole jobs on a CUDA device. Nothing here asserts a time or an accuracy."""

import importlib.util
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import ModelConfig
from peftsweep.errors import Interrupted
from peftsweep.job.run import run_job
from peftsweep.modalities.base import modality_of
from peftsweep.modalities.loading import load_base
from peftsweep.modalities.text.loss import language_model_loss
from peftsweep.modalities.text.task import TextTask
from peftsweep.records.results import JobResult, Status

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SMALL = [
    "device=cuda:0",
    "allow_shared_gpu=true",
    "tracking=none",
    "method=lora",
    "task.train_rows=200",
    "task.valid_rows=20",
    "task.test_rows=16",
    "task.max_new_tokens=48",
    "task.general_rows=8",
    "hparams.max_steps=6",
    "hparams.eval_every=3",
]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the package bitsandbytes"
)

Run = Callable[..., JobResult]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def job(*overrides: str, **options: Any) -> JobResult:
        folder = tmp_path / f"job-{len(list(tmp_path.glob('job-*')))}"
        config = build_config(compose_config([*SMALL, f"cache={tmp_path / 'cache'}", *overrides]))
        return run_job(config, folder, **options)

    return job


def losses(tmp_path: Path, number: int = 0) -> list[float]:
    lines = (tmp_path / f"job-{number}" / "history.jsonl").read_text().splitlines()
    return [step["train/loss"] for step in map(json.loads, lines) if "train/loss" in step]


def test_a_bfloat16_job_ends_well_with_its_memory_measured(run: Run, tmp_path: Path) -> None:
    result = run("model.dtype=bfloat16")
    memory = {key: value for key, value in result.metrics.items() if key.startswith("memory/")}
    assert result.status is Status.OK
    assert memory.keys() == {
        "memory/train_peak_reserved_bytes",
        "memory/train_peak_allocated_bytes",
        "memory/train_reserved_avg_bytes",
        "memory/train_reserved_p99_bytes",
        "memory/job_peak_reserved_bytes",
        "memory/job_peak_rss_bytes",
    }
    allocated, reserved = memory["memory/train_peak_allocated_bytes"], memory["memory/train_peak_reserved_bytes"]
    assert 0 < allocated <= reserved <= memory["memory/job_peak_reserved_bytes"]
    assert memory["memory/train_reserved_avg_bytes"] <= memory["memory/train_reserved_p99_bytes"] <= reserved
    assert (tmp_path / "job-0" / "predictions.jsonl").read_text().count("\n") == 16


def test_memory_of_training_leaves_out_evaluation(run: Run) -> None:
    """Small steps and one large evaluation batch: if that were counted, the job's peak would be training's."""
    result = run("hparams.batch_size=1", "hparams.eval_batch_size=300", "task.valid_rows=256", "task.test_rows=300")
    train, job = (result.metrics[f"memory/{key}_peak_reserved_bytes"] for key in ("train", "job"))
    assert train < job


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fused_loss_is_the_plain_loss(dtype: str) -> None:
    base = load_base(ModelConfig("pocket-llama", "text", "embedded", dtype=dtype), torch.device("cuda:0"))
    texts = ["Mia has 4 bags with 6 shells.", "Omar had 12 coins. He lost 5 coins, 12 - 5 = 7."]
    batch = base.tokenizer(texts, return_tensors="pt", padding=True).to("cuda:0")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    arguments = (base.model, batch["input_ids"], batch["attention_mask"], labels)
    with torch.no_grad():
        fused, plain = (language_model_loss(*arguments, fused=fused).sum.item() for fused in (True, False))
    assert fused == pytest.approx(plain, rel=1e-5 if dtype == "float32" else 1e-2)


VARIANTS: dict[str, list[str]] = {
    "amp": ["model.dtype=float32", "hparams.amp=true"],
    "gradient checkpointing": ["model.dtype=float32", "hparams.gradient_checkpointing=true"],
    "compile": ["model.dtype=float32", "hparams.compile=true"],
    "plain loss": ["model.dtype=float32", "hparams.fused_loss=false"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_of_the_loop_learns_the_same(variant: str, run: Run, tmp_path: Path) -> None:
    run("model.dtype=float32")
    assert run(*VARIANTS[variant]).status is Status.OK
    assert losses(tmp_path, 1) == pytest.approx(losses(tmp_path, 0), rel=3e-2 if variant == "amp" else 1e-3)


def test_gradient_checkpointing_takes_less_memory(run: Run) -> None:
    # A batch large enough for activations to outweigh the weights.
    peaks = [
        run("hparams.batch_size=64", f"hparams.gradient_checkpointing={value}").metrics[
            "memory/train_peak_allocated_bytes"
        ]
        for value in ("false", "true")
    ]
    assert peaks[1] < peaks[0]


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantised_base_can_be_trained_on(dtype: str, run: Run) -> None:
    result = run(f"model.dtype={dtype}")
    assert result.status is Status.OK
    assert result.metrics["valid/loss"] > 0


def test_a_resumed_job_ends_close_to_one_that_was_not_interrupted(run: Run, tmp_path: Path) -> None:
    def stop(step: int, metrics: dict[str, float], tokens: int) -> None:
        if step == 3:
            raise Interrupted("stopped")

    whole = run()
    with pytest.raises(Interrupted):
        run(observe=stop)
    resumed = run(f"resume={tmp_path / 'job-1'}")
    assert resumed.metrics["train/tokens"] == whole.metrics["train/tokens"]
    assert resumed.metrics["valid/loss"] == pytest.approx(whole.metrics["valid/loss"], rel=1e-2)


def test_running_out_of_memory_is_a_result_of_its_own(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def exhaust(*arguments: Any, **options: Any) -> None:
        torch.empty(2**50, dtype=torch.uint8, device="cuda:0")

    monkeypatch.setattr(TextTask, "loss", exhaust)
    with pytest.raises(MemoryError, match=r"hparams\.batch_size"):
        run("task.general_rows=0", "task.base_score=false")
    assert json.loads((tmp_path / "job-0" / "result.json").read_text())["status"] == "oom"


def test_batches_are_made_on_the_host(tmp_path: Path) -> None:
    config = build_config(compose_config([*SMALL, f"cache={tmp_path}"]))
    base = load_base(ModelConfig("pocket-llama", "text", "embedded"), torch.device("cuda:0"))
    task = modality_of(config.task).build_task(config.task, config.hparams, base, tmp_path)
    [batch] = islice(task.train_batches(2, seed=0), 1)
    assert {tensor.device.type for tensor in batch.values()} == {"cpu"}
