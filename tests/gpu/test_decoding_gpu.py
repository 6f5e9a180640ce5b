"""On CUDA decoding gives each prompt the answer that it gets alone, and goes on after running out of memory."""

from collections.abc import Callable

import pytest
import torch
from on_cuda import reserving_at_most
from tiny_language import Tokenizer, build_gpt2, build_llama, build_mistral, build_prompts, decode, generate_alone
from torch import nn

from peftsweep.modalities.text.decoding import decode_greedily


@pytest.mark.parametrize(
    "build", [build_llama, build_mistral, build_gpt2], ids=["full attention", "sliding window", "learned positions"]
)
def test_predictions_are_those_of_one_by_one_generate(build: Callable[[], nn.Module]) -> None:
    model, prompts = build().cuda(), build_prompts()
    assert decode(model, prompts) == [generate_alone(model, prompt) for prompt in prompts]


def test_a_batch_that_does_not_fit_is_halved_until_it_does(noted: Callable[..., None]) -> None:
    """Keys and values of all 256 prompts take 128 MiB, more than is left."""
    model, prompts = build_llama().cuda(), [[5] * 1024 for _ in range(256)]
    expected = decode_greedily(model, Tokenizer(None), prompts[:1], batch_size=1, max_new_tokens=4).generations * 256
    torch.cuda.empty_cache()
    with reserving_at_most(torch.cuda.memory_reserved() + 96 * 2**20):
        decoded = decode_greedily(model, Tokenizer(None), prompts, batch_size=256, max_new_tokens=4)
    rows = decoded.generation_config["batch_size"]
    noted(rows=rows)
    assert rows < 256
    assert decoded.generations == expected
