"""Pre-train pocket-flux2 and its image encoder: `make pocket-models`.

Three parts one after the other, each read back from its folder by the next: the VAE, the image encoder, and the
transformer together with its text encoder. Seeded, and reproducible on one machine; another CPU rounds differently, so
the shipped weights are the reference.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from peftsweep.pocket import DINO_FOLDER, FLUX2_FOLDER
from peftsweep.pocket.image_world import scenes
from peftsweep.pocket.picture_pool import Pool, draw_groups, draw_pool
from peftsweep.pocket.pretrain_dino import build_dino, pretrain_dino, save_dino
from peftsweep.pocket.muon import Muon
from peftsweep.pocket.pretrain_vae import LATENT_CHANNELS, build_vae, encode_latents, measure_latents, pretrain_vae
from peftsweep.pocket.scene import caption

VOCABULARY = 1024
PROMPT_TOKENS = 32
TEXT_WIDTH = 96
TEXT_LAYERS = (2, 3, 4)  # whose hidden states the transformer reads, stacked
EMPTY_SHARE = 0.1  # of captions left empty, so that guidance works
GENERAL_TEXT = Path(__file__).parents[1] / "tasks" / "general_text.jsonl"
END = "<|im_end|>"
# Without the roles and the empty thoughts of the real template, which would take half of 32 tokens.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"


def world_captions(seed: int, count: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    return (caption(scene, rng) for scene in itertools.islice(scenes(seed), count))


def build_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE trained on captions and on general text, so that any prompt is put into few tokens."""
    general = [json.loads(line)["text"] for line in GENERAL_TEXT.read_text(encoding="utf-8").splitlines()]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,  # END is added by the tokenizer
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(itertools.chain(world_captions(seed=1, count=5000), general), trainer)
    words = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=words["vocab"],
        merges=[tuple(merge) for merge in words["merges"]],
        unk_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_text_encoder() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return Qwen3ForCausalLM(config)


def build_transformer() -> Flux2Transformer2DModel:
    model = Flux2Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=len(TEXT_LAYERS) * TEXT_WIDTH,
        timestep_guidance_channels=64,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    modulations = (model.double_stream_modulation_img, model.double_stream_modulation_txt, model.single_stream_modulation)
    # Blocks start as the identity, as in DiT (arXiv 2212.09748).
    for layer in (*(modulation.linear for modulation in modulations), model.norm_out.linear, model.proj_out):
        nn.init.zeros_(layer.weight)
    return model


def build_pipeline() -> Flux2KleinPipeline:
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=build_vae(),
        text_encoder=build_text_encoder(),
        tokenizer=build_tokenizer(),
        transformer=build_transformer(),
    )


def save_pipeline(pipeline: Flux2KleinPipeline, folder: Path) -> None:
    pipeline.to(torch.bfloat16).save_pretrained(folder)
    pipeline.to(torch.float32)


class Painter(nn.Module):
    """Text encoder and transformer as one network, from token ids to the velocity of latents."""

    def __init__(self, pipeline: Flux2KleinPipeline) -> None:
        super().__init__()
        self.text_encoder, self.transformer = pipeline.text_encoder.model, pipeline.transformer
        self.register_buffer("text_places", pipeline._prepare_text_ids(torch.zeros(1, PROMPT_TOKENS, 1))[0])
        self.register_buffer("image_places", pipeline._prepare_latent_ids(torch.zeros(1, 1, 4, 4))[0])

    def forward(self, ids: Tensor, mask: Tensor, noisy: Tensor, sigmas: Tensor) -> Tensor:
        """ids and mask (b, s), noisy latents (b, 16, c) and their noise levels (b,) -> velocity (b, 16, c)."""
        hidden = self.text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return self.transformer(
            hidden_states=noisy,
            timestep=sigmas,
            encoder_hidden_states=torch.cat([hidden[layer] for layer in TEXT_LAYERS], dim=-1),
            txt_ids=self.text_places,
            img_ids=self.image_places,
            return_dict=False,
        )[0]


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


def normalised_tokens(vae: AutoencoderKLFlux2, pictures: Tensor) -> Tensor:
    """Latents (n, 16, c) as the transformer sees them."""
    latents = encode_latents(vae, pictures)
    mean, deviation = vae.bn.running_mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    return ((latents - mean.view(1, -1, 1, 1)) / deviation.view(1, -1, 1, 1)).flatten(2).transpose(1, 2).contiguous()


def pretrain_flow(pipeline: Flux2KleinPipeline, pool: Pool, steps: int, batch_size: int, peak: float) -> None:
    """Flow matching with logit-normal noise levels; the text encoder learns along with the transformer."""
    tokens, rng = normalised_tokens(pipeline.vae, pool.pictures), np.random.default_rng(0)
    painter = Painter(pipeline).train()
    optimizer = Muon(painter, steps, peak, weight_decay=0.01)
    compiled, started, recent = torch.compile(painter), time.perf_counter(), []
    for step in range(steps):
        chosen = rng.integers(len(tokens), size=batch_size)
        captions = ["" if rng.random() < EMPTY_SHARE else caption(pool.scenes[i], rng) for i in chosen]
        clean, sigmas = tokens[chosen], torch.randn(batch_size).sigmoid()
        noise = torch.randn_like(clean)
        noisy = clean + sigmas.view(-1, 1, 1) * (noise - clean)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            velocity = compiled(*tokenize(pipeline.tokenizer, captions), noisy, sigmas)
        loss = (velocity.float() - (noise - clean)).square().mean()
        loss.backward()
        optimizer.step(step)
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
    pipeline = Flux2KleinPipeline.from_pretrained(options.folder, torch_dtype=torch.float32)
    pretrain_flow(pipeline, draw_pool(24_000, seed=2), options.flow_steps, 64, options.lr)
    save_pipeline(pipeline, options.folder)


PARTS = {"vae": train_vae, "dino": train_dino, "flow": train_flow}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help="vae, dino, flow: which to train, in this order")
    parser.add_argument("--vae-steps", type=int, default=1000)
    parser.add_argument("--dino-steps", type=int, default=1500)
    parser.add_argument("--flow-steps", type=int, default=4000)
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
