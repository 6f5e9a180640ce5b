"""Blocks that are compiled in place; without a code generator, by tracing alone."""

from __future__ import annotations

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from peftsweep.job.compilation import compile_blocks, warn_of_uncompiled
from peftsweep.modalities.text.decoding import decode_greedily
from peftsweep.modalities.text.loss import language_model_loss
from peftsweep.modalities.wrapped import repeated_blocks

BACKEND = "aot_eager"


def build_model(rank: int = 4) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes))
    return get_peft_model(model, LoraConfig(r=rank, task_type="CAUSAL_LM", init_lora_weights=False))


def loss_of(model: nn.Module, tokens: int = 9) -> torch.Tensor:
    ids = torch.arange(2 * tokens).remainder(97).reshape(2, tokens)
    return language_model_loss(model, ids, torch.ones_like(ids), ids, masked=False).sum


def test_the_decoder_layers_are_what_repeats() -> None:
    assert [type(block).__name__ for block in repeated_blocks(build_model())] == ["LlamaDecoderLayer"] * 2


@pytest.mark.slow
def test_compiled_blocks_lose_and_learn_the_same_at_every_length() -> None:
    plain, compiled = build_model().train(), build_model().train()
    compile_blocks(compiled, BACKEND)
    for tokens in (9, 12, 20):
        for model in (plain, compiled):
            model.zero_grad()
            loss_of(model, tokens).backward()
        torch.testing.assert_close(loss_of(compiled, tokens), loss_of(plain, tokens), rtol=1e-5, atol=1e-4)
        for (name, weight), (_, expected) in zip(compiled.named_parameters(), plain.named_parameters(), strict=True):
            if expected.grad is not None:
                torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
def test_a_process_compiles_as_many_ranks_as_come_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for rank in range(1, 11):
        model = build_model(rank)
        compile_blocks(model, BACKEND)
        loss_of(model).backward()
        with caplog.at_level(logging.WARNING, "peftsweep"):
            warn_of_uncompiled()
    assert not [record for record in caplog.records if record.name.startswith("peftsweep")]


@pytest.mark.slow
def test_what_goes_on_uncompiled_is_told(caplog: pytest.LogCaptureFixture) -> None:
    models = [build_model(rank) for rank in range(1, 5)]
    compile_blocks(nn.ModuleList(models), BACKEND)
    with torch._dynamo.config.patch(recompile_limit=2):
        for model in models:
            for block in repeated_blocks(model):
                block.compile(dynamic=True, backend=BACKEND)
            loss_of(model)
        with caplog.at_level(logging.WARNING, "peftsweep"):
            warn_of_uncompiled()
    assert "went on without" in caplog.text


def test_decoding_leaves_compiled_blocks_alone() -> None:
    class Tokenizer:
        eos_token_id = 1

    def never(*arguments: object) -> None:
        pytest.fail("it was compiled")

    model, prompts = build_model().eval(), [[5, 6, 7], [8, 9]]
    expected = decode_greedily(model, Tokenizer(), prompts, batch_size=2, max_new_tokens=6).generations
    for block in repeated_blocks(model):
        block.compile(backend=never)
    assert decode_greedily(model, Tokenizer(), prompts, batch_size=2, max_new_tokens=6).generations == expected
    assert all(block._compiled_call_impl for block in repeated_blocks(model))
