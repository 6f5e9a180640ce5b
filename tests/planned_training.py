"""Training steps and evaluations that can be both planned and run: a Llama from a configuration, with random
weights."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import JobConfig
from peftsweep.job.loop import LoopCallbacks, TrainingState, build_scheduler, train
from peftsweep.job.plan.planner import build_step
from peftsweep.job.plan.trace import STEPS, attach_on
from peftsweep.methods.attach import AttachedMethod, build_optimizer
from peftsweep.modalities.base import Skeleton, modality_of
from peftsweep.modalities.skeleton import build_skeleton
from peftsweep.modalities.wrapped import evaluating

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def write_architecture(folder: Path, sizes: dict[str, Any], vocabulary: int) -> Path:
    """A model folder with a configuration and nothing else."""
    config = {"model_type": "llama", "vocab_size": vocabulary, "tie_word_embeddings": True, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def job_on(folder: Path, *overrides: str) -> JobConfig:
    return build_config(compose_config(["model=hf", f"model.id={folder}", *overrides]))


def with_batch_size(config: JobConfig, batch_size: int) -> JobConfig:
    return dataclasses.replace(config, hparams=dataclasses.replace(config.hparams, batch_size=batch_size))


def build_random_model(config: JobConfig, device: torch.device) -> nn.Module:
    """In the job's dtype, frozen."""
    torch.manual_seed(0)
    architecture = AutoConfig.from_pretrained(config.model.id)
    with device:
        model = AutoModelForCausalLM.from_config(architecture, dtype=getattr(torch, config.model.dtype))
    return model.requires_grad_(False)


def attach_really(config: JobConfig, device: torch.device) -> AttachedMethod:
    return attach_on(config, build_random_model(config, device))


def train_really(config: JobConfig, attached: AttachedMethod) -> None:
    """The steps that a plan follows, with weights and values: rows of max_seq_length tokens."""
    hparams, hook = config.hparams, attached.hook
    step = build_step(config, _skeleton_of(config, attached), hparams.batch_size, hparams.max_seq_length)
    optimizer = build_optimizer(attached, hparams.optimizer, lr=1e-4, weight_decay=hparams.weight_decay)
    state = TrainingState(optimizer, build_scheduler(optimizer, "constant", STEPS, 0.0))
    callbacks = LoopCallbacks(
        after_step=lambda done: hook.after_step(attached.model, done), own_loss=lambda: hook.own_loss(attached.model)
    )
    settings = dataclasses.replace(hparams, max_steps=STEPS, eval_every=0)
    train(attached.model, step, itertools.repeat(step.batch), state, settings, callbacks)


def evaluations(config: JobConfig, attached: AttachedMethod) -> Iterator[Callable[[], None]]:
    """The passes of an evaluation that a plan follows, to be called with weights and values."""
    hparams, model = config.hparams, attached.model
    rows, tokens = hparams.eval_batch_size, hparams.max_seq_length
    modality, skeleton = modality_of(config.task), _skeleton_of(config, attached)

    def run(forward: Callable[[nn.Module], object]) -> None:
        with torch.no_grad(), evaluating(model), next(model.parameters()).device:
            forward(model)

    for forward in modality.evaluation_passes(config.task, hparams, skeleton, rows, tokens):
        yield partial(run, forward)


def _skeleton_of(config: JobConfig, attached: AttachedMethod) -> Skeleton:
    return dataclasses.replace(build_skeleton(config.model), model=attached.model)
