"""Pre-train pocket-flux2 and its image encoder: `make pocket-models`.

Four parts one after the other, each read back from its folder by the next: the VAE, its decoder alone, the image
encoder, and the transformer together with its text encoder. Seeded, and reproducible on one machine; another CPU rounds
differently, so the shipped weights are the reference.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import Flux2KleinPipeline
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from peftsweep.modalities.image.pipeline import predict_velocity
from peftsweep.modalities.image.pocket import DINO_FOLDER, FLUX2_FOLDER
from peftsweep.modalities.image.pocket.build import END, PROMPT_TOKENS, TEXT_LAYERS, build_pipeline, save_pipeline
from peftsweep.modalities.image.pocket.picture_pool import Pool, draw_groups, draw_pool
from peftsweep.modalities.image.pocket.pretrain_dino import build_dino, pretrain_dino, save_dino
from peftsweep.modalities.image.pocket.pretrain_vae import encode_latents, measure_latents, pretrain_vae, refine_decoder
from peftsweep.modalities.image.pocket.scene import caption
from peftsweep.modalities.pretraining import Muon

BATCH_SIZE = 64  # of the transformer
EMPTY_SHARE = 0.1  # of captions left empty, so that guidance works


class Painter(nn.Module):
    """Text encoder and transformer as one network, from token ids to the velocity of latents."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.text_encoder, self.transformer = pipeline.text_encoder.model, pipeline.transformer

    def forward(self, ids: Tensor, mask: Tensor, noisy: Tensor, sigmas: Tensor) -> Tensor:
        """ids and mask (b, s), noisy latents (b, c, 4, 4) and their noise levels (b,) -> velocity (b, c, 4, 4)."""
        hidden = self.text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        prompt_embeds = torch.cat([hidden[layer] for layer in TEXT_LAYERS], dim=-1)
        return predict_velocity(self.transformer, noisy, sigmas, prompt_embeds, noisy.dtype)


def tokenize(tokenizer: Qwen2Tokenizer, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask (n, PROMPT_TOKENS), as the pipeline makes them."""
    batch = tokenizer(
        [text + END for text in captions],
        padding="max_length",
        truncation=True,
        max_length=PROMPT_TOKENS,
        return_tensors="pt",
    )
    return batch["input_ids"], batch["attention_mask"]


def normalised_latents(vae: Any, pictures: Tensor) -> Tensor:
    """Latents (n, c, 4, 4) as the transformer sees them."""
    mean, deviation = vae.bn.running_mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    return (encode_latents(vae, pictures) - mean.view(1, -1, 1, 1)) / deviation.view(1, -1, 1, 1)


def pretrain_flow(pipeline: Any, pool: Pool, steps: int, peak: float) -> None:
    """Flow matching with logit-normal noise levels; the text encoder learns along with the transformer."""
    latents, rng = normalised_latents(pipeline.vae, pool.pictures), np.random.default_rng(0)
    painter = Painter(pipeline).train()
    optimizer = Muon(painter, steps, peak, weight_decay=0.01)
    compiled, started, recent = torch.compile(painter), time.perf_counter(), []
    for step in range(steps):
        chosen = rng.integers(len(latents), size=BATCH_SIZE)
        captions = ["" if rng.random() < EMPTY_SHARE else caption(pool.scenes[i], rng) for i in chosen]
        clean, sigmas = latents[chosen], torch.randn(BATCH_SIZE).sigmoid()
        noise = torch.randn_like(clean)
        noisy = clean + sigmas.view(-1, 1, 1, 1) * (noise - clean)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            velocity = compiled(*tokenize(pipeline.tokenizer, captions), noisy, sigmas)
        loss = (velocity.float() - (noise - clean)).square().mean()
        loss.backward()
        optimizer.step()
        recent.append(loss.item())
        if step % 50 == 0 or step == steps - 1:
            seconds, mean = time.perf_counter() - started, sum(recent[-100:]) / len(recent[-100:])
            print(f"flow step {step:5d}/{steps}  loss {mean:.4f}  {seconds:5.0f} s", flush=True)
    painter.eval()


def shuffled(pictures: Tensor, batch_size: int) -> Iterator[Tensor]:
    while True:
        yield pictures[torch.randint(len(pictures), (batch_size,))]


def train_vae(options: argparse.Namespace) -> None:
    pipeline = build_pipeline()
    pictures = draw_pool(16_000, seed=0).pictures
    pretrain_vae(pipeline.vae, shuffled(pictures, 16), options.vae_steps, 5e-3)
    pipeline.vae.to(torch.bfloat16).float()
    measure_latents(pipeline.vae, pictures[:4000])
    save_pipeline(pipeline, options.folder)


def train_dino(options: argparse.Namespace) -> None:
    model = build_dino()
    pretrain_dino(model, draw_groups(12_000, seed=1), options.dino_steps, 1e-3)
    save_dino(model, options.dino_folder)


def train_flow(options: argparse.Namespace) -> None:
    pipeline: Any = Flux2KleinPipeline.from_pretrained(options.folder, torch_dtype=torch.float32)
    pretrain_flow(pipeline, draw_pool(24_000, seed=2), options.flow_steps, options.lr)
    save_pipeline(pipeline, options.folder)


def train_decoder(options: argparse.Namespace) -> None:
    pipeline: Any = Flux2KleinPipeline.from_pretrained(options.folder, torch_dtype=torch.float32)
    pictures = draw_pool(16_000, seed=3).pictures
    refine_decoder(pipeline.vae, shuffled(pictures, 16), options.decoder_steps, 2e-3)
    save_pipeline(pipeline, options.folder)


PARTS = {"vae": train_vae, "decoder": train_decoder, "dino": train_dino, "flow": train_flow}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"which to train: {', '.join(PARTS)}")
    parser.add_argument("--vae-steps", type=int, default=1200)
    parser.add_argument("--decoder-steps", type=int, default=800)
    parser.add_argument("--dino-steps", type=int, default=1000)
    parser.add_argument("--flow-steps", type=int, default=2200)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of the transformer")
    parser.add_argument("--folder", type=Path, default=FLUX2_FOLDER, help="where the pipeline is written")
    parser.add_argument("--dino-folder", type=Path, default=DINO_FOLDER, help="where the image encoder is written")
    options = parser.parse_args(arguments)
    for part in options.parts:
        started = time.perf_counter()
        torch.manual_seed(0)
        PARTS[part](options)
        print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
