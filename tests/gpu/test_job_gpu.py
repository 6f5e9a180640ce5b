"""Whole jobs on a CUDA device. Nothing here asserts a time or an accuracy."""

import gc
import importlib.util
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from on_cuda import DEVICE, SMALL, UNSCORED, Jobs, settled_bytes

from peftsweep.checkup.trial import open_bench
from peftsweep.config.schema import ModelConfig
from peftsweep.errors import Interrupted
from peftsweep.job.plan.planner import Planner
from peftsweep.modalities.base import modality_of
from peftsweep.modalities.loading import load_base
from peftsweep.modalities.text.loss import language_model_loss
from peftsweep.records.results import Status

Note = Callable[..., None]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the package bitsandbytes"
)


@pytest.fixture
def run(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path, SMALL)


def test_a_bfloat16_job_ends_well_with_its_memory_measured(run: Jobs, noted: Note) -> None:
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
    noted(planned_bytes=result.metrics["plan/train_peak_bytes"], measured_bytes=reserved)
    assert 0 < allocated <= reserved <= memory["memory/job_peak_reserved_bytes"]
    assert memory["memory/train_reserved_avg_bytes"] <= memory["memory/train_reserved_p99_bytes"] <= reserved
    assert (run.last / "predictions.jsonl").read_text().count("\n") == 16


def test_memory_of_training_leaves_out_evaluation(run: Jobs, noted: Note) -> None:
    """Small steps and one large evaluation batch: if that were counted, the job's peak would be training's."""
    result = run("hparams.batch_size=1", "hparams.eval_batch_size=300", "task.valid_rows=256", "task.test_rows=300")
    train, job = (result.metrics[f"memory/{key}_peak_reserved_bytes"] for key in ("train", "job"))
    noted(train_bytes=train, job_bytes=job)
    assert train < job


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fused_loss_is_the_plain_loss(dtype: str) -> None:
    base = load_base(ModelConfig("pocket-llama", "text", "embedded", dtype=dtype), torch.device(DEVICE))
    texts = ["Mia has 4 bags with 6 shells.", "Omar had 12 coins. He lost 5 coins, 12 - 5 = 7."]
    batch = base.tokenizer(texts, return_tensors="pt", padding=True).to(DEVICE)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    arguments = (base.model, batch["input_ids"], batch["attention_mask"], labels)
    with torch.no_grad():
        fused, plain = (language_model_loss(*arguments, fused=fused).sum.item() for fused in (True, False))
    assert fused == pytest.approx(plain, rel=1e-5 if dtype == "float32" else 1e-2)


VARIANTS: dict[str, list[str]] = {
    "amp": ["hparams.amp=true"],
    "gradient checkpointing": ["hparams.gradient_checkpointing=true"],
    "compile": ["hparams.compile=true"],
    "plain loss": ["hparams.fused_loss=false"],
    "parts of a batch": ["hparams.max_tokens_per_pass=100"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_of_the_loop_learns_the_same(variant: str, run: Jobs, noted: Note) -> None:
    run("model.dtype=float32")
    assert run("model.dtype=float32", *VARIANTS[variant]).status is Status.OK
    plain, other = run.losses(0), run.losses(1)
    noted(loss=plain[-1], differs_by=max(abs(b / a - 1) for a, b in zip(plain, other, strict=True)))
    assert other == pytest.approx(plain, rel=3e-2 if variant == "amp" else 1e-3)


def test_gradient_checkpointing_takes_less_memory(run: Jobs, noted: Note) -> None:
    # A batch large enough for activations to outweigh the weights.
    key, switch = "memory/train_peak_allocated_bytes", "hparams.gradient_checkpointing"
    without, with_it = (run("hparams.batch_size=64", f"{switch}={on}").metrics[key] for on in ("false", "true"))
    noted(without_bytes=without, with_bytes=with_it)
    assert with_it < without


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantised_base_can_be_trained_on(dtype: str, run: Jobs, noted: Note) -> None:
    result = run(f"model.dtype={dtype}")
    noted(
        planned_bytes=result.metrics["plan/train_peak_bytes"],
        measured_bytes=result.metrics["memory/train_peak_reserved_bytes"],
    )
    assert result.status is Status.OK
    assert result.metrics["valid/loss"] > 0


def test_float16_is_scaled_and_tells_the_steps_that_it_left_out(run: Jobs, noted: Note) -> None:
    result = run("model.dtype=float16", "hparams.max_steps=12")
    skipped = result.metrics["train/skipped_steps"]
    noted(skipped_steps=skipped)
    assert result.status is Status.OK
    assert skipped < 12
    assert all(map(math.isfinite, run.losses(0)))


def test_a_job_that_must_fit_a_small_card_keeps_to_it_and_learns_the_same(tmp_path: Path, noted: Note) -> None:
    """On the doctor's model, which is large enough for a plan to mean something. Workspaces of cuBLAS, tens of MiB that
    no plan knows of, are left out of account."""
    model = ("task.source=embedded", *open_bench(tmp_path, torch.device(DEVICE)).model)
    steps = ("hparams.batch_size=12", "hparams.max_steps=3", "hparams.warmup_fraction=0")
    run = Jobs(tmp_path, (*SMALL, *UNSCORED, *model, *steps))
    planner = Planner(run.config())
    card, tokens = planner.plan(4, 3).high_bytes, planner.plan().tokens
    whole, fitted = run(), run("fit=true", f"gpu={card}B")
    gc.collect()
    allocated = torch.cuda.memory_allocated()
    workspaces = allocated - settled_bytes()
    peak, uncut = (result.metrics["memory/train_peak_reserved_bytes"] - workspaces for result in (fitted, whole))
    noted(card_bytes=card, measured_bytes=peak, uncut_bytes=uncut, workspaces_bytes=workspaces)
    asked = fitted.config["hparams"]["max_tokens_per_pass"]
    assert 4 * tokens <= asked < 12 * tokens
    assert peak <= card < uncut
    assert run.losses(1) == pytest.approx(run.losses(0), rel=1e-2)  # in bfloat16


@pytest.mark.parametrize(("before", "after"), [(DEVICE, DEVICE), (DEVICE, "cpu"), ("cpu", DEVICE)])
def test_a_resumed_job_ends_close_to_one_that_was_not_interrupted(
    before: str, after: str, run: Jobs, noted: Note
) -> None:
    def stop(step: int, metrics: dict[str, float], tokens: int) -> None:
        if step == 3:
            raise Interrupted("stopped")

    whole = run(f"device={before}")
    with pytest.raises(Interrupted):
        run(f"device={before}", observe=stop)
    resumed = run(f"device={after}", f"resume={run.last}")
    noted(loss=resumed.metrics["valid/loss"], uninterrupted=whole.metrics["valid/loss"])
    assert resumed.steps == whole.steps
    assert resumed.metrics["train/tokens"] == whole.metrics["train/tokens"]
    assert resumed.metrics["valid/loss"] == pytest.approx(whole.metrics["valid/loss"], rel=1e-2)


def test_batches_are_made_on_the_host(run: Jobs) -> None:
    config = run.config()
    base = load_base(ModelConfig("pocket-llama", "text", "embedded"), torch.device(DEVICE))
    task = modality_of(config.task).build_task(config.task, config.hparams, base, run.folder)
    [batch] = islice(task.train_batches(2, seed=0), 1)
    assert {tensor.device.type for tensor in batch.values()} == {"cpu"}
