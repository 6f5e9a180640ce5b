"""What a plan must know of pictures: the training step on latents of the task's resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from peftsweep.modalities.base import Batch, BatchLoss, Skeleton
from peftsweep.modalities.image.flow import add_noise, flow_losses, total_loss
from peftsweep.modalities.image.pipeline import predict_velocity
from peftsweep.modalities.image.settings import PIXELS_PER_TOKEN, ImageGenConfig


@dataclass(frozen=True)
class FlowStep:
    """Flow matching, with prompts padded to their limit."""

    batch: Batch
    dtype: torch.dtype
    prior_weight: float

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        noisy = add_noise(batch["latents"], batch["noise"], batch["sigmas"])
        velocity = predict_velocity(model, noisy, batch["sigmas"], batch["prompt_embeds"], self.dtype)
        return total_loss(flow_losses(velocity, batch["latents"], batch["noise"]), batch, self.prior_weight)

    def targets(self, batch: Batch) -> int:
        return len(batch["latents"])

    def tokens(self, batch: Batch) -> int:
        return len(batch["latents"])


def build_flow_step(task: ImageGenConfig, skeleton: Skeleton, rows: int) -> FlowStep:
    """A batch of `rows` photos and, with prior preservation, as many pictures of their class."""
    dtype = next(skeleton.model.parameters()).dtype
    side, count = task.resolution // PIXELS_PER_TOKEN, 2 * rows if task.prior_photos else rows
    latents = torch.zeros((count, skeleton.config["in_channels"], side, side), dtype=dtype)
    prompts = torch.zeros((count, task.max_prompt_tokens, skeleton.config["joint_attention_dim"]), dtype=dtype)
    batch = {
        "latents": latents,
        "noise": torch.zeros_like(latents),
        "sigmas": torch.zeros(count),
        "prompt_embeds": prompts,
    }
    if task.prior_photos:
        batch["is_prior"] = torch.arange(count) >= rows
    return FlowStep(batch, dtype, task.prior_weight)
