"""The parts of pocket-flux2 with random weights, and their tokenizer, which is trained on captions and general text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from peftsweep.modalities.general import SHIPPED
from peftsweep.modalities.image.pocket.pretrain_vae import LATENT_CHANNELS, build_vae
from peftsweep.modalities.image.pocket.scene import caption
from peftsweep.modalities.image.pocket.world import scenes

VOCABULARY = 1024
PROMPT_TOKENS = 32
TEXT_WIDTH = 96
TEXT_LAYERS = (2, 3, 4)  # whose hidden states the transformer reads, stacked
END = "<|im_end|>"
# Without the roles and the empty thoughts of the real template, which would take half of 32 tokens.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"


def world_captions(seed: int, count: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    return (caption(scene, rng) for scene in itertools.islice(scenes(seed), count))


def build_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE trained on captions and on general text, so that any prompt is put into few tokens."""
    general = [json.loads(line)["text"] for line in SHIPPED.read_text(encoding="utf-8").splitlines()]
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
        merges=[tuple(merge) for merge in words["merges"]],  # type: ignore[misc]
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


def build_transformer() -> Any:
    model: Any = Flux2Transformer2DModel(
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
    # Blocks start as the identity, as in DiT (arXiv 2212.09748).
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        nn.init.zeros_(getattr(model, name).linear.weight)
    nn.init.zeros_(model.norm_out.linear.weight)
    nn.init.zeros_(model.proj_out.weight)
    return model


def build_pipeline() -> Any:
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=build_vae(),
        text_encoder=build_text_encoder(),
        tokenizer=build_tokenizer(),
        transformer=build_transformer(),
    )


def save_pipeline(pipeline: Any, folder: Path) -> None:
    pipeline.to(torch.bfloat16).save_pretrained(folder)
    pipeline.to(torch.float32)
