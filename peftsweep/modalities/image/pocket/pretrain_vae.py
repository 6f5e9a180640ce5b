"""The VAE of pocket-flux2: 64 x 64 pictures to 16 latent channels of 8 x 8, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor, nn
from torch.nn import functional

from peftsweep.modalities.pretraining import muon, pretrain

LATENT_CHANNELS = 16
LATENT_NOISE = 0.06  # standard deviation, about what the VAE itself adds to latents of deviation 1.3
KL_WEIGHT = 1e-3  # of the Kullback-Leibler term per latent number against the error per pixel and colour


def build_vae() -> Any:
    vae: Any = AutoencoderKLFlux2(
        block_out_channels=(16, 24, 48, 80),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(cast(Tensor, module.bias))
    # Little noise at first, or the decoder learns to do without latents.
    nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], -4.0)
    return vae


def to_pixels(pictures: Tensor) -> Tensor:
    """uint8 (n, 64, 64, 3) -> float32 (n, 3, 64, 64) from -1 to 1."""
    return pictures.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def reconstruction_loss(made: Tensor, pixels: Tensor) -> Tensor:
    """Squared error, which places large forms soon, and absolute error, which keeps edges sharp."""
    wrong = made - pixels
    return wrong.abs().mean() + 2 * wrong.square().mean()


def pretrain_vae(vae: Any, batches: Iterator[Tensor], steps: int) -> None:
    """batches: uint8 (b, 64, 64, 3)."""
    vae.train()
    vae.bn.eval()

    def next_loss() -> Tensor:
        pixels = to_pixels(next(batches))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = vae.encode(pixels).latent_dist
            mean, log_variance = latents.mean.float(), latents.logvar.float().clamp(-20, 10)
            made = vae.decode(mean + torch.randn_like(mean) * (0.5 * log_variance).exp()).sample.float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return reconstruction_loss(made, pixels) + KL_WEIGHT * divergence

    pretrain("vae", vae, muon(vae, peak=5e-3), steps, next_loss)
    vae.eval()


def refine_decoder(vae: Any, batches: Iterator[Tensor], steps: int) -> None:
    """Train the decoder alone: pictures get sharper while latents, and so what the transformer has learnt, stay."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def next_loss() -> Tensor:
        pixels = to_pixels(next(batches))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                mean = vae.encode(pixels).latent_dist.mean.float()
            made = vae.decode(mean + LATENT_NOISE * torch.randn_like(mean)).sample.float()
        return reconstruction_loss(made, pixels)

    pretrain("decoder", vae, muon(vae, peak=2e-3), steps, next_loss)


@torch.no_grad()
def encode_latents(vae: Any, pictures: Tensor) -> Tensor:
    """Patchified latents (n, 4 x channels, 4, 4) as the pipeline makes them, not yet normalised."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [vae.encode(to_pixels(part)).latent_dist.mode().float() for part in pictures.split(64)]
    return functional.pixel_unshuffle(torch.cat(found), 2)


def measure_latents(vae: Any, pictures: Tensor) -> None:
    """Set the statistics by which the pipeline normalises latents."""
    latents = encode_latents(vae, pictures)
    vae.bn.running_mean.copy_(latents.mean(dim=(0, 2, 3)))
    vae.bn.running_var.copy_(latents.var(dim=(0, 2, 3)))
