"""Decoding many prompts together gives each the answer that it gets alone from transformers' `generate`."""

from collections.abc import Callable
from itertools import takewhile
from typing import Any

import pytest
import torch
from peft import (
    AdaptionPromptConfig,
    CPTConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from tiny_language import (
    EOS,
    MAX_NEW_TOKENS,
    SIZES,
    VOCABULARY_SIZE,
    Tokenizer,
    build_gpt2,
    build_llama,
    build_mistral,
    build_prompts,
    decode,
    generate_alone,
)
from torch import nn
from transformers import (
    GenerationConfig,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from peftsweep.errors import DataError, ModelError
from peftsweep.modalities.text import decoding
from peftsweep.modalities.text.decoding import check_decoding, decode_greedily

PEFT_CONFIGS: dict[str, Callable[[], PeftConfig]] = {
    "lora": lambda: LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, lora_dropout=0.5),
    "ia3": lambda: IA3Config(task_type="CAUSAL_LM", init_ia3_weights=False),
    "prefix tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prompt tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "p-tuning": lambda: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16),
    "adaption prompt": lambda: AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2),
    "cpt": lambda: CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[1, 2, 3], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 4]
    ),
}


def build_model(wrapping: str) -> nn.Module:
    model = build_llama()
    if wrapping == "full":
        return model
    torch.manual_seed(1)
    model = get_peft_model(model, PEFT_CONFIGS[wrapping]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adaption_gate" in name:  # starts at 0, where the method does nothing
                parameter.fill_(0.5)
    return model.eval()


@pytest.mark.parametrize("wrapping", ["full", *PEFT_CONFIGS])
def test_predictions_are_those_of_one_by_one_generate(wrapping: str) -> None:
    model, prompts = build_model(wrapping), build_prompts()
    expected = [generate_alone(model, prompt) for prompt in prompts]
    lengths = {len(generation) for generation in expected}
    assert len(lengths) > 3, "answers of one length would not test who leaves the batch when"
    assert decode(model, prompts) == expected


@pytest.mark.parametrize("batch_size", [1, 5, 100])
@pytest.mark.parametrize("steps", [1, 3])
def test_predictions_do_not_depend_on_batch_size_or_checks(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, steps: int
) -> None:
    model, prompts = build_llama(), build_prompts()
    expected = [generate_alone(model, prompt) for prompt in prompts]
    monkeypatch.setattr(decoding, "STEPS_BETWEEN_CHECKS", steps)
    assert decode(model, prompts, batch_size=batch_size) == expected


@pytest.mark.parametrize("max_new_tokens", [1, 2, 9])
def test_no_answer_is_longer_than_allowed(max_new_tokens: int) -> None:
    model, prompts = build_llama(), build_prompts()
    expected = [generate_alone(model, prompt, max_new_tokens) for prompt in prompts]
    assert max(map(len, expected)) == max_new_tokens
    assert decode(model, prompts, max_new_tokens=max_new_tokens) == expected


def build_mamba() -> MambaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.4}
    return MambaForCausalLM(MambaConfig(**sizes, state_size=8)).eval()


def build_jamba() -> JambaForCausalLM:
    torch.manual_seed(0)
    kinds = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "num_experts_per_tok": 1}
    return JambaForCausalLM(JambaConfig(**SIZES, **kinds, mamba_d_state=8, use_mamba_kernels=False)).eval()


@pytest.mark.parametrize("build", [build_mistral, build_gpt2, build_mamba, build_jamba])
def test_other_architectures_predict_as_one_by_one(build: Callable[[], nn.Module]) -> None:
    model, prompts = build(), build_prompts()
    assert decode(model, prompts) == [generate_alone(model, prompt) for prompt in prompts]


def test_a_model_that_has_a_cache_of_its_own_is_refused() -> None:
    rwkv = RwkvForCausalLM(RwkvConfig(vocab_size=VOCABULARY_SIZE, hidden_size=32, num_hidden_layers=2))
    with pytest.raises(ModelError, match="must go on from a cache"):
        check_decoding(rwkv)
    check_decoding(build_mamba())


def test_a_context_that_just_suffices_is_not_exceeded() -> None:
    """GPT-2 has no embedding for the 129th position; a sequence at its limit must not run on with younger ones."""
    model, prompts = build_gpt2(), [(prompt * 98)[:98] for prompt in build_prompts(12)]
    expected = [generate_alone(model, prompt, 30) for prompt in prompts]
    assert len({len(generation) for generation in expected}) > 3
    assert decode(model, prompts, batch_size=3, max_new_tokens=30) == expected


def test_checkpoint_generation_config_is_set_aside() -> None:
    model, prompts = build_llama(), build_prompts(8)
    expected = decode(model, prompts)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=9.0, repetition_penalty=5.0, eos_token_id=EOS
    )
    assert decode(model, prompts) == expected


def test_whatever_token_ends_an_answer_of_the_model_ends_it() -> None:
    model, prompts = build_llama(), build_prompts(12)
    whole = decode(model, prompts)
    turn_ends = next(token for generation in whole for token in generation[1:])
    model.generation_config = GenerationConfig(eos_token_id=[EOS, turn_ends])
    expected = [list(takewhile(lambda token: token != turn_ends, generation)) for generation in whole]
    assert expected != whole
    assert decode(model, prompts) == expected


def test_the_config_in_effect_is_reported() -> None:
    config = decode_greedily(build_llama(), Tokenizer(), [[5]], batch_size=4, max_new_tokens=7).generation_config
    assert config["do_sample"] is False
    assert (config["max_new_tokens"], config["eos_token_id"], config["batch_size"]) == (7, [EOS], 4)


def test_without_an_end_token_every_answer_has_the_full_length() -> None:
    decoded = decode_greedily(build_llama(), Tokenizer(None), build_prompts(5), batch_size=2, max_new_tokens=11)
    assert [len(generation) for generation in decoded.generations] == [11] * 5


def test_every_prompt_is_reported_done_once() -> None:
    reports: list[int] = []
    decode(build_llama(), build_prompts(), on_done=reports.append)
    assert sum(reports) == 24
    assert min(reports) > 0


def test_dropout_is_off_while_decoding_and_the_mode_restored() -> None:
    model, prompts = build_model("lora"), build_prompts(6)
    expected = decode(model, prompts)
    model.train()
    model.get_base_model().model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert decode(model, prompts) == expected
    assert [module.training for module in model.modules()] == modes


class CountdownLlama(LlamaForCausalLM):
    """Answers a prompt that ends with token n by n - 1, n - 2, ... down to 0: lengths are known beforehand."""

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        outputs = super().forward(*inputs, **keywords)
        next_token = (keywords["input_ids"][:, -1:] - 1).clamp(min=0)
        outputs.logits = nn.functional.one_hot(next_token, self.config.vocab_size).float()
        return outputs


def test_finished_sequences_cost_no_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CountdownLlama(LlamaConfig(**{**SIZES, "vocab_size": 64})).eval()
    lengths = torch.randint(2, 60, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [[61, 62, length + 1] for length in lengths]
    rows_fed: list[int] = []
    model.register_forward_pre_hook(
        lambda module, inputs, keywords: rows_fed.append(len(keywords["input_ids"])), with_kwargs=True
    )
    monkeypatch.setattr(decoding, "STEPS_BETWEEN_CHECKS", 1)
    decoded = decode_greedily(model, Tokenizer(0), prompts, batch_size=10, max_new_tokens=64)
    assert [len(generation) for generation in decoded.generations] == lengths
    # a prompt is one row and chooses the answer's first token; every other token, the last one included, feeds one row
    assert sum(rows_fed) == sum(1 + length for length in lengths)
    n_passes_of_padded_batches = sum(1 + max(lengths[first : first + 10]) for first in range(0, 60, 10))
    assert len(rows_fed) < 0.8 * n_passes_of_padded_batches


def test_the_cache_forgets_what_no_sequence_uses() -> None:
    model, prompts = build_llama(), [[5] * 10] * 40
    widths: list[int] = []
    model.register_forward_pre_hook(
        lambda module, inputs, keywords: widths.append(keywords["attention_mask"].shape[1]), with_kwargs=True
    )
    decode_greedily(model, Tokenizer(None), prompts, batch_size=4, max_new_tokens=12)
    assert max(widths) <= 10 + 12


class LittleMemory:
    """Makes a model run out of memory whenever it is fed more rows than fit."""

    def __init__(self, model: nn.Module, most_rows: int) -> None:
        self.most_rows = most_rows
        self.n_failures = 0
        model.register_forward_pre_hook(self.check, with_kwargs=True)

    def check(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if len(keywords["input_ids"]) > self.most_rows:
            self.n_failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")


def test_out_of_memory_halves_the_batch_and_changes_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    prompts = build_prompts()
    expected = decode(build_llama(), prompts)
    model = build_llama()
    memory = LittleMemory(model, most_rows=3)
    reports: list[int] = []
    decoded = decode_greedily(
        model, Tokenizer(), prompts, batch_size=12, max_new_tokens=MAX_NEW_TOKENS, on_done=reports.append
    )
    assert decoded.generations == expected
    assert memory.n_failures == 2
    assert decoded.generation_config["batch_size"] == 3
    assert sum(reports) == len(prompts)
    assert "going on with 3" in caplog.text


def test_out_of_memory_midway_keeps_finished_answers() -> None:
    prompts = build_prompts()
    expected = decode(build_llama(), prompts)
    model, n_calls, reports = build_llama(), 0, []

    def fail_once(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 30:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    model.register_forward_pre_hook(fail_once, with_kwargs=True)
    assert decode(model, prompts, on_done=reports.append) == expected
    assert n_calls > 30
    assert sum(reports) == len(prompts)


def test_out_of_memory_with_a_single_sequence_is_raised() -> None:
    model = build_llama()
    LittleMemory(model, most_rows=0)
    with pytest.raises(torch.OutOfMemoryError):
        decode(model, build_prompts(4))


def test_no_prompts_give_no_generations() -> None:
    assert decode(build_llama(), []) == []


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(DataError, match=r"at least one token.*\[1\]"):
        decode(build_llama(), [[5], []])
