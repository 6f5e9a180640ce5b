"""A Flux2KleinPipeline of a few thousand random weights, saved as a folder: for tests that need the real classes."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

WORDS = ["a", "photo", "of", "sks", "toy", "cat", "red", "blue", "circle", "left", "the"]
RESOLUTION = 32  # 2 x 2 latent tokens
LAYERS = [1, 2]
MAX_TOKENS = 12


def save_tiny_pipeline(folder: Path) -> Path:
    """Seeded, so that all tests see the same weights."""
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    Flux2KleinPipeline(scheduler, vae, _text_encoder(), _tokenizer(), transformer).save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", "user", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<pad>")
    fast.chat_template = "{% for message in messages %}user {{ message.content }}{% endfor %}"
    return fast


def _text_encoder() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=3 + len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return Qwen3ForCausalLM(config)


def drop_component(folder: Path, name: str) -> None:
    """Make a saved pipeline one that lacks a part."""
    shutil.rmtree(folder / name)
    index = json.loads((folder / "model_index.json").read_text())
    del index[name]
    (folder / "model_index.json").write_text(json.dumps(index))
