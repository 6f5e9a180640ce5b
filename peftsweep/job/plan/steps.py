"""The training step of a task as a trace needs it: the batch that takes most memory, and the job's own loss on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from peftsweep.config.schema import ImageGenConfig, JobConfig
from peftsweep.modalities.base import Batch, BatchLoss
from peftsweep.modalities.skeleton import Skeleton
from peftsweep.modalities.text.loss import language_model_loss, may_fuse_loss

FLUX2_PIXELS_PER_TOKEN = 16  # the VAE makes one latent of 8 x 8 pixels, the transformer one token of 2 x 2 latents


class TracedStep(Protocol):
    """What `training.train` asks of a task, and a batch for it, on the host."""

    @property
    def batch(self) -> Batch: ...
    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss: ...
    def targets(self, batch: Batch) -> int: ...
    def tokens(self, batch: Batch) -> int: ...


@dataclass(frozen=True)
class LanguageStep:
    """Rows of equal length, every token a target: no batch of that length takes more."""

    batch: Batch
    fused_loss: bool

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        fused = self.fused_loss and may_fuse_loss(model)
        found = language_model_loss(model, batch["input_ids"], batch["attention_mask"], batch["labels"], fused=fused)
        return BatchLoss(found.sum, found.auxiliary)

    def targets(self, batch: Batch) -> int:
        return batch["labels"].numel()

    def tokens(self, batch: Batch) -> int:
        return batch["labels"].numel()


@dataclass(frozen=True)
class FlowStep:
    """Flow matching on latents of the task's resolution, with prompts padded to their limit."""

    batch: Batch
    dtype: torch.dtype

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        from peftsweep.modalities.image.flow import add_noise, flow_losses
        from peftsweep.modalities.image.pipeline import predict_velocity

        noisy = add_noise(batch["latents"], batch["noise"], batch["sigmas"])
        velocity = predict_velocity(model, noisy, batch["sigmas"], batch["prompt_embeds"], self.dtype)
        losses = flow_losses(velocity, batch["latents"], batch["noise"])
        return BatchLoss(losses.sum(), losses.new_zeros(()))

    def targets(self, batch: Batch) -> int:
        return len(batch["latents"])

    def tokens(self, batch: Batch) -> int:
        return len(batch["latents"])


def build_step(config: JobConfig, skeleton: Skeleton, batch_size: int, tokens: int) -> TracedStep:
    """The step of `batch_size` rows. tokens: of the longest row of a text task; pictures are all alike."""
    if not isinstance(config.task, ImageGenConfig):
        return LanguageStep(_rows(batch_size, tokens), config.hparams.fused_loss)
    dtype = next(skeleton.model.parameters()).dtype
    return FlowStep(_pictures(config.task, skeleton, batch_size, dtype), dtype)


def _rows(batch_size: int, tokens: int) -> Batch:
    ids = torch.zeros((batch_size, tokens), dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def _pictures(task: ImageGenConfig, skeleton: Skeleton, batch_size: int, dtype: torch.dtype) -> Batch:
    side = task.resolution // FLUX2_PIXELS_PER_TOKEN
    latents = torch.zeros((batch_size, skeleton.config["in_channels"], side, side), dtype=dtype)
    prompt = torch.zeros((batch_size, task.max_prompt_tokens, skeleton.config["joint_attention_dim"]), dtype=dtype)
    sigmas = torch.zeros(batch_size)
    return {"latents": latents, "noise": torch.zeros_like(latents), "sigmas": sigmas, "prompt_embeds": prompt}
