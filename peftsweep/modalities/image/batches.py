"""Batches of pictures: latents and noise (b, c, h, w), sigmas (b,), prompt_embeds (b, s, d), all on the host.

Everything that is drawn for a training batch follows from the job's seed and the batch's number, so a job that goes on
after an interruption meets what it would have met. Held-out batches never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from peftsweep.modalities.base import Batch
from peftsweep.modalities.image.flow import draw_sigmas, held_out_noise
from peftsweep.modalities.image.settings import ImageGenConfig
from peftsweep.modalities.order import batch_order


@dataclass(frozen=True)
class TrainingSet:
    """latents: (n, v, c, h, w), each photo cut out in v ways; prompt_embeds: (n, s, d); prior_latents: (m, c, h, w) of
    pictures of the concept's class, and prior_embeds (1, s, d) of their prompt, both or none."""

    latents: Tensor
    prompt_embeds: Tensor
    prior_latents: Tensor | None = None
    prior_embeds: Tensor | None = None


def training_batches(
    data: TrainingSet, batch_size: int, config: ImageGenConfig, levels: Tensor, seed: int, skip: int
) -> Iterator[Batch]:
    """Endless batches in an order that follows the seed.

    With prior pictures, as many of them as photos are added to each batch, and `is_prior` (b,) tells them apart.
    """
    order = batch_order([1] * len(data.latents), batch_size, 1, seed)
    for number, photos in islice(enumerate(order), skip, None):
        state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
        yield _batch(data, photos, config, levels, torch.Generator().manual_seed(int(state[0])))


def _batch(
    data: TrainingSet, photos: list[int], config: ImageGenConfig, levels: Tensor, generator: torch.Generator
) -> Batch:
    variants = torch.randint(data.latents.shape[1], (len(photos),), generator=generator)
    latents, prompt_embeds = data.latents[photos, variants], data.prompt_embeds[photos]
    extra = {}
    if data.prior_latents is not None and data.prior_embeds is not None:
        chosen = torch.randint(len(data.prior_latents), (len(photos),), generator=generator)
        latents = torch.cat([latents, data.prior_latents[chosen]])
        prompt_embeds = torch.cat([prompt_embeds, data.prior_embeds.expand(len(photos), -1, -1)])
        extra["is_prior"] = torch.arange(len(latents)) >= len(photos)
    sigmas = draw_sigmas(len(latents), config, levels, generator)
    noise = torch.randn(latents.shape, generator=generator)
    return {"latents": latents, "noise": noise, "sigmas": sigmas, "prompt_embeds": prompt_embeds, **extra}


def held_out_batches(latents: Tensor, prompt_embeds: Tensor, levels: Tensor, batch_size: int) -> Iterator[Batch]:
    """Each photo, of latents (n, c, h, w) and prompt_embeds (n, s, d), at all noise levels that are asked for."""
    parts = zip(*(part.split(batch_size) for part in held_out_noise(latents, levels)), strict=True)
    for rows, sigmas, noise in parts:
        yield {"latents": latents[rows], "noise": noise, "sigmas": sigmas, "prompt_embeds": prompt_embeds[rows]}
