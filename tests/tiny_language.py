"""Language models of two narrow layers and a dozen tokens, and transformers' own answers, to judge decoding by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from peftsweep.modalities.text.decoding import decode_greedily

VOCABULARY_SIZE = 13
EOS = 3
MAX_NEW_TOKENS = 32
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "initializer_range": 0.4,
}


@dataclass
class Tokenizer:
    eos_token_id: int | None = EOS


def build_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def build_mistral() -> MistralForCausalLM:
    """With a window that is shorter than most prompts."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)).eval()


def build_gpt2() -> GPT2LMHeadModel:
    """With 128 learned positions."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.4
    )
    return GPT2LMHeadModel(config).eval()


def build_prompts(n_prompts: int = 24, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (n_prompts,), generator=generator).tolist()
    return [torch.randint(4, VOCABULARY_SIZE, (length,), generator=generator).tolist() for length in lengths]


def generate_alone(model: nn.Module, prompt: list[int], max_new_tokens: int = MAX_NEW_TOKENS) -> list[int]:
    """The reference: transformers' own greedy search, one prompt, no padding, where the model is."""
    config = GenerationConfig(do_sample=False, eos_token_id=EOS, pad_token_id=EOS, max_new_tokens=max_new_tokens)
    input_ids = torch.tensor([prompt], device=next(model.parameters()).device)
    output = model.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config)
    new = output[0, len(prompt) :].tolist()
    return new[: new.index(EOS)] if EOS in new else new


def decode(model: nn.Module, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    """Ours."""
    settings = {"batch_size": 6, "max_new_tokens": MAX_NEW_TOKENS, **settings}
    return decode_greedily(model, Tokenizer(), prompts, **settings).generations
