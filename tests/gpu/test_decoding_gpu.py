"""On CUDA decoding gives each prompt the answer that it gets alone, and goes on after running out of memory."""

from dataclasses import dataclass

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from peftsweep.modalities.text.decoding import decode_greedily

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

EOS = 3


@dataclass
class Tokenizer:
    eos_token_id: int | None = EOS


def build_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=13,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).cuda().eval()


def build_prompts(n_prompts: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (n_prompts,), generator=generator).tolist()
    return [torch.randint(4, 13, (length,), generator=generator).tolist() for length in lengths]


def generate_alone(model: LlamaForCausalLM, prompt: list[int]) -> list[int]:
    config = GenerationConfig(do_sample=False, eos_token_id=EOS, pad_token_id=EOS, max_new_tokens=32)
    input_ids = torch.tensor([prompt], device="cuda")
    output = model.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config)
    new = output[0, len(prompt) :].tolist()
    return new[: new.index(EOS)] if EOS in new else new


def test_predictions_are_those_of_one_by_one_generate() -> None:
    model, prompts = build_llama(), build_prompts(24)
    decoded = decode_greedily(model, Tokenizer(), prompts, batch_size=6, max_new_tokens=32)
    assert decoded.generations == [generate_alone(model, prompt) for prompt in prompts]


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    model, prompts = build_llama(), [[5] * 1024 for _ in range(64)]
    expected = decode_greedily(model, Tokenizer(None), prompts[:1], batch_size=1, max_new_tokens=4).generations * 64
    torch.cuda.empty_cache()
    _, total_bytes = torch.cuda.mem_get_info()
    limit_bytes = torch.cuda.memory_reserved() + 96 * 2**20
    try:
        torch.cuda.set_per_process_memory_fraction(limit_bytes / total_bytes)
        decoded = decode_greedily(model, Tokenizer(None), prompts, batch_size=64, max_new_tokens=4)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert decoded.generation_config["batch_size"] < 64
    assert decoded.generations == expected
