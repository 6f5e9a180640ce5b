"""Predicted against published peak memory, for every experiment of a copy of the reference benchmark.

PEFTSWEEP_REFERENCE=<method_comparison folder> python tests/bench/bench_plan.py [--length N] [--only word]

Its `accelerator_memory_max` is what torch reserved on an L40S: of the whole job for text, of training for images. One
constant is fitted: LONGEST_ROW, tokens of the longest training row, on the one file FITTED_ON, as its data are not at
hand. Everything else is as the benchmark's own code has it: transformers' loss over float32 logits for text, and for
images DINOv2, which judges pictures, resident beside the transformer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.osf import utils as osf
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from peftsweep.config.schema import HparamsConfig, JobConfig, MethodConfig, ModelConfig
from peftsweep.errors import PeftsweepError
from peftsweep.exchange.experiments import read_method
from peftsweep.job.plan.planner import Planner, build_step
from peftsweep.modalities.base import Batch, BatchLoss, PlannedStep, Skeleton
from peftsweep.modalities.image.settings import ImageGenConfig
from peftsweep.modalities.text.planned import LanguageStep
from peftsweep.modalities.text.settings import MetamathConfig

FITTED_ON = "lora--llama-3.2-3B-rank32"
LONGEST_ROW = 702
UNFUSED_STEP = {"foreach": True}  # torch's own choice on CUDA, as the reference leaves it
# By peft's type: what was run for the published figure is no more in this peft.
REWRITTEN = set() if hasattr(osf, "reconstruct_weight_matrix") else {"OSF"}
DINO_BYTES = 4 * 86_580_480  # facebook/dinov2-base in float32
TEXT, IMAGES = "meta-llama/Llama-3.2-3B", "black-forest-labs/FLUX.2-klein-base-4B"


@dataclass(frozen=True)
class Published:
    name: str
    folder: Path
    is_text: bool
    peak_bytes: int
    trainable_params: int


@dataclass(frozen=True)
class ReferenceLanguageStep(LanguageStep):
    """The reference's loss: transformers' own, from full logits in float32, in its loop.

    The loop holds a step's outputs, logits and all, until the next step has its own. It empties torch's cache every ten
    steps, and its longest rows come once: here after a step of two tokens, which makes the optimizer's state and leaves
    no large blocks. It scores the base with the adapter off before it trains, and peft turns every gradient of an
    adapter on when it comes back: LoRA-FA's frozen half too, which its optimizer had turned off.
    """

    held: list[Any] = field(default_factory=list)

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                pass
        length = None if self.held else 2
        batch = {key: tensor[:, :length].to(model.device) for key, tensor in batch.items()}
        self.held[:] = [model(**batch, num_items_in_batch=batch["labels"].numel())]
        loss = self.held[0].loss
        return BatchLoss(loss, torch.zeros((), device=loss.device))

    def targets(self, batch: Batch) -> int:
        return 1


def published(root: Path) -> Iterator[Published]:
    for kind in ("MetaMathQA", "image-gen"):
        for result in sorted((root / kind / "results").glob("*.json")):
            info = json.loads(result.read_text(encoding="utf-8"))["train_info"]
            folder = root / kind / "experiments" / Path(*result.stem.split("--"))
            yield Published(
                result.stem,
                folder,
                kind == "MetaMathQA",
                info["accelerator_memory_max"],
                info["num_trainable_params"],
            )


def job_of(experiment: Published, length: int) -> JobConfig:
    has_adapter = (experiment.folder / "adapter_config.json").exists()
    method = read_method(experiment.folder) if has_adapter else MethodConfig(name="full")
    training = experiment.folder / "training_params.json"
    chosen = json.loads(training.read_text(encoding="utf-8")) if training.exists() else {}
    adapter_float32 = chosen.get("autocast_adapter_dtype", True)
    if experiment.is_text:
        model, task = (
            ModelConfig(name="llama-3.2-3b", modality="text", id=TEXT),
            MetamathConfig(name="metamath", modality="text"),
        )
        hparams = HparamsConfig(
            batch_size=4,
            max_seq_length=length,
            fused_loss=False,
            optimizer_kwargs=dict(UNFUSED_STEP),
            adapter_float32=adapter_float32,
        )
        return JobConfig(hparams, model, task, method)
    model = ModelConfig(name="flux2-klein-4b", id=IMAGES, modality="image")
    hparams = HparamsConfig(
        batch_size=2,
        gradient_checkpointing=True,
        optimizer_kwargs=dict(UNFUSED_STEP),
        adapter_float32=adapter_float32,
    )
    return JobConfig(hparams, model, ImageGenConfig(name="image-gen", modality="image"), method)


def reference_step(config: JobConfig, skeleton: Skeleton, batch_size: int, tokens: int) -> PlannedStep:
    step = build_step(config, skeleton, batch_size, tokens)
    return ReferenceLanguageStep(step.batch, False) if isinstance(step, LanguageStep) else step


def predict(experiment: Published, length: int) -> tuple[int, int]:
    """(predicted peak in bytes, trainable parameters)."""
    beside = 0

    def follow(config: JobConfig, skeleton: Skeleton, batch_size: int, tokens: int) -> PlannedStep:
        nonlocal beside
        beside = 0 if experiment.is_text else DINO_BYTES + buffers_of_adapters(skeleton.model)
        return reference_step(config, skeleton, batch_size, tokens)

    plan = Planner(job_of(experiment, length), follow).plan()
    return plan.train_peak_bytes + beside, plan.trainable_params


def buffers_of_adapters(model: nn.Module) -> int:
    """In bytes. peft leaves them on the host (BOFT's permutations), but the reference's script for images moves the
    whole transformer to the device once more."""
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    return sum(buffer.nbytes for layer in layers for buffer in layer.buffers(recurse=False))


def compare(experiments: list[Published], length: int) -> dict[str, float]:
    """Print a line for each; answer relative errors by name."""
    errors = {}
    for experiment in experiments:
        began = time.perf_counter()
        try:
            peak, params = predict(experiment, length)
        except PeftsweepError as refused:
            print(f"{experiment.name:52} no plan: {str(refused)[:90]}", flush=True)
            continue
        error = peak / experiment.peak_bytes - 1
        same = "same" if params == experiment.trainable_params else f"{params:,} for {experiment.trainable_params:,}"
        if job_of(experiment, length).method.peft_type in REWRITTEN:
            same += "; not counted: peft's code for it has changed since"
        else:
            errors[experiment.name] = error
        sizes = f"{experiment.peak_bytes / 2**30:7.2f} {peak / 2**30:9.2f} {100 * error:+7.1f}%"
        print(f"{experiment.name:52} {sizes} {time.perf_counter() - began:7.1f} s   {same}", flush=True)
    return errors


def summarise(title: str, errors: dict[str, float]) -> None:
    if errors:
        sizes = sorted((abs(error), name) for name, error in errors.items())
        median, (worst, name) = statistics.median(size for size, _ in sizes), sizes[-1]
        within = sum(size <= 0.1 for size, _ in sizes)
        told = f"median {100 * median:.1f}%, worst {100 * worst:.1f}% ({name}), {within} of {len(sizes)} within 10%"
        print(f"{title:28} {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=LONGEST_ROW)
    parser.add_argument("--only", default="", help="experiments whose name holds this")
    options = parser.parse_args()
    root = os.environ.get("PEFTSWEEP_REFERENCE")
    if not root:
        print("PEFTSWEEP_REFERENCE names no copy of method_comparison: nothing to compare with.")
        return
    warnings.simplefilter("ignore")
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:False"  # nor does the reference set up torch's allocator
    print(f"{'experiment':52} {'GiB':>7} {'predicted':>9} {'error':>8} {'':>9}   trainable parameters")
    experiments = [one for one in published(Path(root)) if options.only in one.name]
    errors = compare(experiments, options.length)
    is_text = {one.name: one.is_text for one in experiments}
    unseen = {name: error for name, error in errors.items() if name != FITTED_ON}
    summarise("all but the fitted one", unseen)
    summarise("text", {name: error for name, error in unseen.items() if is_text[name]})
    summarise("images", {name: error for name, error in unseen.items() if not is_text[name]})
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"host memory {peak_gib:.1f} GiB")


if __name__ == "__main__":
    main()
