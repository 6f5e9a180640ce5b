"""What a plan must know of pictures: a transformer without weights, and the step on latents of its resolution."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import Flux2Transformer2DModel
from torch import nn

from peftsweep.config.schema import ModelConfig
from peftsweep.modalities.base import Batch, BatchLoss, Skeleton
from peftsweep.modalities.image.flow import add_noise, flow_losses, lengths_of_photos, photos_of, total_loss
from peftsweep.modalities.image.pipeline import predict_velocity
from peftsweep.modalities.image.settings import PIXELS_PER_TOKEN, ImageGenConfig
from peftsweep.modalities.load_errors import model_errors
from peftsweep.modalities.loading import base_location
from peftsweep.modalities.skeleton import depths_of, described_source, known_architecture
from peftsweep.modalities.wrapped import on_device_of


@dataclass(frozen=True)
class FlowStep:
    """Flow matching, with prompts padded to their limit."""

    batch: Batch
    dtype: torch.dtype
    prior_weight: float

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        batch = on_device_of(model, batch)
        noisy = add_noise(batch["latents"], batch["noise"], batch["sigmas"])
        velocity = predict_velocity(model, noisy, batch["sigmas"], batch["prompt_embeds"], self.dtype)
        return total_loss(flow_losses(velocity, batch["latents"], batch["noise"]), batch, self.prior_weight)

    def targets(self, batch: Batch) -> int:
        return len(batch["latents"])

    tokens = targets

    def lengths(self, batch: Batch) -> list[int]:
        return lengths_of_photos(batch)

    def rows(self, batch: Batch, which: Sequence[int]) -> Batch:
        return photos_of(batch, which)


def build_flow_step(task: ImageGenConfig, skeleton: Skeleton, rows: int) -> FlowStep:
    """A batch of `rows` photos and, with prior preservation, as many pictures of their class."""
    dtype = next(skeleton.model.parameters()).dtype
    side, count = task.resolution // PIXELS_PER_TOKEN, 2 * rows if task.prior_photos else rows
    with torch.device("cpu"):
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


def build_transformer_skeleton(model: ModelConfig, dtype: torch.dtype, *, one_of_each: bool) -> Skeleton:
    """See `modalities.base.Modality.build_skeleton`."""
    config = known_architecture(model) or _own_configuration(model)
    if one_of_each:
        config = config | dict.fromkeys(depths_of(config), 1)  # not in place: the table's entry is shared
    built: Any = Flux2Transformer2DModel.from_config({**config, "_class_name": "Flux2Transformer2DModel"})
    nn.Module.to(built, dtype)  # in place; diffusers' own `to` warns of nothing
    return Skeleton(built, described_source(model), dict(built.config))


def _own_configuration(model: ModelConfig) -> dict[str, Any]:
    folder = Path(base_location(model)) / "transformer"
    if folder.is_dir():
        return cast(dict[str, Any], json.loads((folder / "config.json").read_text(encoding="utf-8")))
    with model_errors(model.id):
        found = Flux2Transformer2DModel.load_config(model.id, subfolder="transformer", revision=model.revision)
    return dict(found)
