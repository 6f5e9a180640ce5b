"""Flow matching: a latent is mixed with noise, x = (1 - sigma) latent + sigma noise, and the model is asked for the way
from the one to the other, noise - latent.

How noise levels are drawn in training follows Esser et al. 2024 (Scaling Rectified Flow Transformers, section 3.1),
as diffusers has it. Held-out loss asks at levels and with noise that never change.
"""

from __future__ import annotations

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor

from peftsweep.modalities.base import Batch, BatchLoss
from peftsweep.modalities.image.settings import ImageGenConfig

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
