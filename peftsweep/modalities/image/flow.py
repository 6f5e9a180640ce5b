"""Flow matching: a latent is mixed with noise, x = (1 - sigma) latent + sigma noise, and the model is asked for the way
from the one to the other, noise - latent.

How noise levels are drawn in training follows Esser et al. 2024 (Scaling Rectified Flow Transformers, section 3.1),
as diffusers has it. Held-out loss asks at levels and with noise that never change.

Batches are latents and noise (b, c, h, w), sigmas (b,), prompt_embeds (b, s, d), all on the host. Everything that is
drawn for a training batch follows from the job's seed and the batch's number, so a job that goes on after an
interruption meets what it would have met.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor

from peftsweep.modalities.base import Batch, BatchLoss
from peftsweep.modalities.image.settings import ImageGenConfig
from peftsweep.modalities.order import batch_order

HELD_OUT_LEVELS, HELD_OUT_DRAWS = 8, 2  # noise levels, and noises at each of them, for every held-out photo
HELD_OUT_SEED = 1_000_003


def draw_sigmas(count: int, config: ImageGenConfig, levels: Tensor, generator: torch.Generator) -> Tensor:
    """(count,) noise levels out of `levels`, the scheduler's, falling, by the configuration's noise_density."""
    position = compute_density_for_timestep_sampling(
        config.noise_density, count, config.logit_mean, config.logit_std, config.mode_scale, generator=generator
    )
    # Rounding, and `mode` with a large scale, leave [0, 1).
    return levels[(position * len(levels)).long().clamp(0, len(levels) - 1)]


def add_noise(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """latents, noise: (b, c, h, w); sigmas: (b,)."""
    share = sigmas.view(-1, 1, 1, 1)
    return (1 - share) * latents + share * noise


def flow_losses(velocity: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
    """(b,): the mean squared error of each picture's velocity, (b, c, h, w), in float32."""
    return (velocity.float() - (noise.float() - latents.float())).square().flatten(1).mean(dim=1)


def total_loss(losses: Tensor, batch: Batch, prior_weight: float) -> BatchLoss:
    """losses: (b,). Prior pictures, where a batch has any, add the weighted mean of theirs."""
    if "is_prior" not in batch:
        return BatchLoss(losses.sum(), losses.new_zeros(()))
    is_prior = batch["is_prior"].to(losses.dtype)
    return BatchLoss((losses * (1 - is_prior)).sum(), prior_weight * (losses * is_prior).sum() / is_prior.sum())


def tokens_of_picture(batch: Batch) -> int:
    """Latent and prompt tokens. Prompts are padded, and the model reads their padding like any token."""
    height, width = batch["latents"].shape[2:]
    return height * width + batch["prompt_embeds"].shape[1]


def lengths_of_photos(batch: Batch) -> list[int]:
    """Tokens of each photo of a batch; its prior picture isn't counted. Of a batch where photos and prior pictures
    don't pair, one length: it can't be divided."""
    photos, priors = _photos_and_priors(batch)
    return [tokens_of_picture(batch)] * (1 if priors and len(priors) != len(photos) else len(photos))


def photos_of(batch: Batch, which: Sequence[int]) -> Batch:
    """Some photos of a batch, each with its prior picture, where there are any, so that `total_loss` weighs them as in
    the whole batch."""
    photos, priors = _photos_and_priors(batch)
    if priors and len(priors) != len(photos):
        return batch
    rows = [*(photos[photo] for photo in which), *(priors[photo] for photo in which if priors)]
    return {key: tensor[rows] for key, tensor in batch.items()}


def _photos_and_priors(batch: Batch) -> tuple[list[int], list[int]]:
    is_prior = batch.get("is_prior", torch.zeros(len(batch["latents"]), dtype=torch.bool))
    photos, priors = ((is_prior == wanted).nonzero().flatten().tolist() for wanted in (False, True))
    return photos, priors


def loss_weights(config: ImageGenConfig, sigmas: Tensor) -> Tensor:
    """(b,): what the losses of a training batch count. sigma_sqrt draws uniformly and weights by 1 / sigma^2."""
    return compute_loss_weighting_for_sd3(config.noise_density, sigmas)


def held_out_noise(latents: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a held-out loss asks for: rows (n,) of the latents, sigmas (n,), noise (n, c, h, w).

    The same for every call; photo i is asked the same whatever photos stand beside it.
    """
    each, n_photos = HELD_OUT_LEVELS * HELD_OUT_DRAWS, len(latents)
    middles = (torch.arange(HELD_OUT_LEVELS) + 0.5) / HELD_OUT_LEVELS
    sigmas = levels[(middles * len(levels)).long()].repeat_interleave(HELD_OUT_DRAWS)
    noises = [
        torch.randn((each, *latents.shape[1:]), generator=torch.Generator().manual_seed(HELD_OUT_SEED + photo))
        for photo in range(n_photos)
    ]
    return torch.arange(n_photos).repeat_interleave(each), sigmas.repeat(n_photos), torch.cat(noises)


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
        generator = torch.Generator().manual_seed(int(state[0]))
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
        yield {"latents": latents, "noise": noise, "sigmas": sigmas, "prompt_embeds": prompt_embeds, **extra}


def held_out_batches(latents: Tensor, prompt_embeds: Tensor, levels: Tensor, batch_size: int) -> Iterator[Batch]:
    """Each photo, of latents (n, c, h, w) and prompt_embeds (n, s, d), at all noise levels that are asked for."""
    parts = zip(*(part.split(batch_size) for part in held_out_noise(latents, levels)), strict=True)
    for rows, sigmas, noise in parts:
        yield {"latents": latents[rows], "noise": noise, "sigmas": sigmas, "prompt_embeds": prompt_embeds[rows]}
