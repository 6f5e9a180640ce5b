"""Pre-train pocket-flux2 and its image encoder: `make pocket-models`.

Four parts one after the other, each read back from its folder by the next: the VAE, its decoder alone, the image
encoder, and the transformer together with its text encoder. Seeded, and reproducible on one machine; another CPU rounds
differently, so the shipped weights are the reference.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import Flux2KleinPipeline
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from peftsweep.modalities.image.pipeline import predict_velocity
from peftsweep.modalities.image.pocket import FLUX2_FOLDER
from peftsweep.modalities.image.pocket.build import END, PROMPT_TOKENS, TEXT_LAYERS, build_pipeline, save_pipeline
from peftsweep.modalities.image.pocket.pretrain_dino import build_dino, pretrain_dino, save_dino
from peftsweep.modalities.image.pocket.pretrain_vae import encode_latents, measure_latents, pretrain_vae, refine_decoder
from peftsweep.modalities.image.pocket.scene import Scene, caption
from peftsweep.modalities.image.pocket.world import draw, scenes, vary_scene
from peftsweep.modalities.pretraining import muon, pretrain

STEPS = {"vae": 1200, "decoder": 800, "dino": 1000, "flow": 2200}
PROCESSES = 2
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


def pretrain_flow(pipeline: Any, drawn: list[Scene], pictures: Tensor, steps: int) -> None:
    """Flow matching with logit-normal noise levels; the text encoder learns along with the transformer."""
    latents, rng = normalised_latents(pipeline.vae, pictures), np.random.default_rng(0)
    painter = Painter(pipeline).train()
    compiled = torch.compile(painter)

    def next_loss() -> Tensor:
        chosen = rng.integers(len(latents), size=BATCH_SIZE)
        captions = ["" if rng.random() < EMPTY_SHARE else caption(drawn[i], rng) for i in chosen]
        clean, sigmas = latents[chosen], torch.randn(BATCH_SIZE).sigmoid()
        noise = torch.randn_like(clean)
        noisy = clean + sigmas.view(-1, 1, 1, 1) * (noise - clean)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            velocity = compiled(*tokenize(pipeline.tokenizer, captions), noisy, sigmas)
        return (velocity.float() - (noise - clean)).square().mean()

    pretrain("flow", painter, muon(painter, peak=2e-3, weight_decay=0.01), steps, next_loss)
    painter.eval()


def draw_all(chosen: list[Scene], seed: int) -> Tensor:
    """uint8 (n, 64, 64, 3): a picture of each scene, drawn by two processes."""
    with multiprocessing.get_context("fork").Pool(PROCESSES) as workers:
        pictures = workers.starmap(_draw_one, ((scene, seed, i) for i, scene in enumerate(chosen)), chunksize=500)
    return torch.from_numpy(np.stack(pictures))


def _draw_one(scene: Scene, seed: int, index: int) -> np.ndarray:
    return draw(scene, np.random.default_rng([seed, index]))


def shuffled_pictures(seed: int) -> tuple[Tensor, Iterator[Tensor]]:
    """16,000 pictures for the VAE, and endless batches of them."""
    pictures = draw_all(list(itertools.islice(scenes(seed), 16_000)), seed)
    return pictures, iter(lambda: pictures[torch.randint(len(pictures), (16,))], None)


def train_vae(folder: Path) -> None:
    pipeline = build_pipeline()
    pictures, batches = shuffled_pictures(seed=0)
    pretrain_vae(pipeline.vae, batches, STEPS["vae"])
    pipeline.vae.to(torch.bfloat16).float()
    measure_latents(pipeline.vae, pictures[:4000])
    save_pipeline(pipeline, folder / "flux2")


def train_decoder(folder: Path) -> None:
    pipeline: Any = Flux2KleinPipeline.from_pretrained(folder / "flux2", torch_dtype=torch.float32)
    refine_decoder(pipeline.vae, shuffled_pictures(seed=3)[1], STEPS["decoder"])
    save_pipeline(pipeline, folder / "flux2")


def train_dino(folder: Path) -> None:
    model, rng = build_dino(), np.random.default_rng(1)
    groups = [(scene, scene, vary_scene(scene, rng)) for scene in itertools.islice(scenes(1), 12_000)]
    drawn = list(itertools.chain.from_iterable(groups))
    pretrain_dino(model, drawn, draw_all(drawn, seed=1), STEPS["dino"])
    save_dino(model, folder / "dino")


def train_flow(folder: Path) -> None:
    pipeline: Any = Flux2KleinPipeline.from_pretrained(folder / "flux2", torch_dtype=torch.float32)
    drawn = list(itertools.islice(scenes(2), 24_000))
    pretrain_flow(pipeline, drawn, draw_all(drawn, seed=2), STEPS["flow"])
    save_pipeline(pipeline, folder / "flux2")


PARTS = {"vae": train_vae, "decoder": train_decoder, "dino": train_dino, "flow": train_flow}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"which to train: {', '.join(PARTS)}")
    parser.add_argument("--folder", type=Path, default=FLUX2_FOLDER.parent, help="where flux2/ and dino/ are written")
    options = parser.parse_args(arguments)
    for part in options.parts:
        torch.manual_seed(0)
        PARTS[part](options.folder)


if __name__ == "__main__":
    main(sys.argv[1:])
