"""The fused loss is the plain loss: same value, same gradients, for every way of wrapping a model."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    CPTConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    get_peft_model,
)
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from peftsweep.job.plan.trace import on_meta
from peftsweep.modalities.base import BatchLoss
from peftsweep.modalities.text import loss as language_loss
from peftsweep.modalities.text.loss import (
    language_model_loss,
    may_fuse_loss,
    needs_mask,
    rows_at_once,
    supports_fused_loss,
)

VOCABULARY_SIZE = 97

PEFT_CONFIGS: dict[str, Callable[[], PeftConfig]] = {
    "lora": lambda: LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False),
    "adalora": lambda: AdaLoraConfig(task_type="CAUSAL_LM", total_step=10),
    "ia3": lambda: IA3Config(task_type="CAUSAL_LM"),
    "prefix tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prompt tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "cpt": lambda: CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[1, 2, 3], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 4]
    ),
}
WRAPPINGS = ["full", *PEFT_CONFIGS]


def build_llama(*, tied: bool = True, head_dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).to(head_dtype)


def build_model(wrapping: str) -> nn.Module:
    model = build_llama()
    if wrapping == "full":
        return model
    torch.manual_seed(1)
    return get_peft_model(model, PEFT_CONFIGS[wrapping]())


TARGETS = 3 * 10 - 3 - 4  # of build_batch: but for the first column, padding and what is masked


def build_batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    input_ids = torch.randint(VOCABULARY_SIZE, (3, 11), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 7:] = 0
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    labels[0, :4] = -100
    return input_ids, attention_mask, labels


def objective_of(loss: BatchLoss) -> Tensor:
    """What training descends: the mean over targets and the method's own term."""
    return loss.sum / TARGETS + loss.auxiliary


def gradients_of(model: nn.Module, loss: BatchLoss) -> dict[str, Tensor]:
    model.zero_grad()
    objective_of(loss).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_fused_value_is_the_plain_value(wrapping: str) -> None:
    model = build_model(wrapping).eval()
    plain = language_model_loss(model, *build_batch(), fused=False)
    fused = language_model_loss(model, *build_batch())
    torch.testing.assert_close(fused.sum / TARGETS, plain.sum / TARGETS, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_fused_gradients_are_the_plain_gradients(wrapping: str) -> None:
    model = build_model(wrapping).eval()
    plain = gradients_of(model, language_model_loss(model, *build_batch(), fused=False))
    fused = gradients_of(model, language_model_loss(model, *build_batch()))
    assert plain
    assert plain.keys() == fused.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(fused[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrapping", ["full", "lora", "prefix tuning", "prompt tuning"])
def test_plain_value_is_what_transformers_computes(wrapping: str) -> None:
    model = build_model(wrapping).eval()
    input_ids, attention_mask, labels = build_batch()
    labels[:, 0] = -100  # after virtual tokens PEFT would count it, we never do
    expected = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
    loss = language_model_loss(model, input_ids, attention_mask, labels, fused=False)
    torch.testing.assert_close(loss.sum / TARGETS, expected)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_all_methods_are_judged_on_the_same_tokens(wrapping: str, fused: bool) -> None:
    """A head of zeros takes every word for equally likely, so each target costs the logarithm of their number."""
    model = build_model(wrapping).eval()
    model.get_output_embeddings().weight.data.zero_()
    loss = language_model_loss(model, *build_batch(), fused=fused)
    assert loss.sum.item() / math.log(VOCABULARY_SIZE) == pytest.approx(TARGETS)


def test_gradients_of_a_separate_head_reach_it() -> None:
    model = build_llama(tied=False)
    gradients = gradients_of(model, language_model_loss(model, *build_batch()))
    assert gradients["lm_head.weight"].abs().sum() > 0


@pytest.mark.parametrize("fused", [True, False])
def test_adalora_adds_its_orthogonality_to_the_objective_alone(fused: bool) -> None:
    model = build_model("adalora").eval()
    input_ids, attention_mask, labels = build_batch()
    expected = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
    loss = language_model_loss(model, *build_batch(), fused=fused)
    assert loss.auxiliary > 0.1
    torch.testing.assert_close(objective_of(loss), expected)


def test_a_batch_without_targets_costs_nothing_and_has_a_gradient() -> None:
    model = build_llama()
    input_ids, attention_mask, labels = build_batch()
    loss = language_model_loss(model, input_ids, attention_mask, torch.full_like(labels, -100))
    gradients = gradients_of(model, loss)
    assert loss.sum == 0
    assert all(gradient.abs().sum() == 0 for gradient in gradients.values())


def test_model_is_left_as_it_was_even_after_an_error() -> None:
    model = build_llama()
    before = dict(vars(model)), model.get_output_embeddings()
    with pytest.raises(IndexError):
        language_model_loss(model, torch.full((1, 4), VOCABULARY_SIZE), torch.ones(1, 4), torch.ones(1, 4).long())
    language_model_loss(model, *build_batch())
    assert (dict(vars(model)), model.get_output_embeddings()) == before


def test_in_slices_the_loss_and_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_llama()
    plain_loss = language_model_loss(model, *build_batch(), fused=False)
    plain = gradients_of(model, plain_loss)
    monkeypatch.setattr(language_loss, "_slice_tokens", lambda n_tokens, vocabulary_size: 4)
    sliced_loss = language_model_loss(model, *build_batch())
    torch.testing.assert_close(sliced_loss.sum, plain_loss.sum, rtol=1e-6, atol=1e-5)
    for name, gradient in gradients_of(model, sliced_loss).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-5)


def test_slices_of_any_length_give_the_same_sum_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    states, weight = torch.randn(23, 8, generator=generator), torch.randn(50, 8, generator=generator)
    bias, targets = torch.randn(50, generator=generator), torch.randint(50, (23,), generator=generator)
    inputs = [tensor.requires_grad_() for tensor in (states, weight, bias)]
    expected = nn.functional.cross_entropy(states @ weight.T + bias, targets, reduction="sum")
    slopes = torch.autograd.grad(3.0 * expected, inputs)
    for n_rows in (1, 7, 23):
        monkeypatch.setattr(language_loss, "_slice_tokens", lambda n_tokens, vocabulary_size, n=n_rows: n)
        found = language_loss.linear_cross_entropy_sum(states, weight, bias, targets)
        torch.testing.assert_close(found, expected)
        for slope, wanted in zip(torch.autograd.grad(3.0 * found, inputs), slopes, strict=True):
            torch.testing.assert_close(slope, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_tokens", [1, 255, 2044, 100_000])
@pytest.mark.parametrize("vocabulary_size", [97, 49_152, 262_144])
def test_a_slice_is_never_larger_than_its_memory_allows(n_tokens: int, vocabulary_size: int) -> None:
    n_rows = language_loss._slice_tokens(n_tokens, vocabulary_size)
    assert 1 <= n_rows <= n_tokens
    fits = n_rows * vocabulary_size * 4 <= language_loss.SLICE_LOGITS_BYTES
    assert fits or n_rows <= language_loss.MIN_SLICE_TOKENS


def test_bfloat16_sum_keeps_float32_precision() -> None:
    model = build_llama(head_dtype=torch.bfloat16).eval()
    plain = language_model_loss(model, *build_batch(), fused=False)
    fused = language_model_loss(model, *build_batch())
    assert fused.sum.dtype == torch.float32
    torch.testing.assert_close(fused.sum, plain.sum, rtol=2e-3, atol=0)


def test_under_autocast_the_fused_loss_is_the_plain_loss() -> None:
    model = build_llama()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain_loss = language_model_loss(model, *build_batch(), fused=False)
        fused_loss = language_model_loss(model, *build_batch())
    torch.testing.assert_close(fused_loss.sum, plain_loss.sum, rtol=2e-3, atol=0)
    plain, fused = gradients_of(model, plain_loss), gradients_of(model, fused_loss)
    for name, gradient in plain.items():
        assert (fused[name] - gradient).norm() <= 0.02 * gradient.norm(), name


def test_under_autocast_states_and_weight_may_differ_in_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    states, weight = torch.randn(9, 8, generator=generator).bfloat16(), torch.randn(50, 8, generator=generator)
    targets = torch.arange(9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = nn.functional.cross_entropy(nn.functional.linear(states, weight).float(), targets, reduction="sum")
        found = language_loss.linear_cross_entropy_sum(states, weight, None, targets)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=0)


def test_under_gradient_checkpointing_gradients_are_the_same() -> None:
    model = build_model("lora").train()
    expected = gradients_of(model, language_model_loss(model, *build_batch()))
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = gradients_of(model, language_model_loss(model, *build_batch()))
    assert expected.keys() == checkpointed.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(checkpointed[name], gradient)


@pytest.mark.parametrize("wrapping", ["full", "lora"])
@pytest.mark.slow
def test_compiled_model_gives_the_same_loss_and_compiles_once(wrapping: str) -> None:
    model = build_model(wrapping).eval()
    expected = language_model_loss(model, *build_batch())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    first = language_model_loss(compiled, *build_batch())
    torch.testing.assert_close(first.sum / TARGETS, expected.sum / TARGETS, rtol=1e-5, atol=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        objective_of(language_model_loss(compiled, *build_batch())).backward()


def may_fuse_without_weights(model: nn.Module) -> bool:
    with on_meta():
        return may_fuse_loss(model.to("meta"))


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_fused_loss_is_supported_for(wrapping: str) -> None:
    model = build_model(wrapping)
    assert supports_fused_loss(model)
    assert may_fuse_without_weights(model)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"], init_lora_weights=False),
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"]),
        TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[1, 2]),
    ],
    ids=["adapted head", "head trained in full", "trainable tokens on a tied head"],
)
def test_fused_loss_is_not_supported_with(config: PeftConfig) -> None:
    tied = isinstance(config, TrainableTokensConfig)
    model = get_peft_model(build_llama(tied=tied), config)
    assert not supports_fused_loss(model)
    assert not may_fuse_without_weights(model)


PROMPTING = {"prompt tuning", "prefix tuning", "cpt"}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_padding_on_the_right_needs_no_mask_but_where_virtual_tokens_stand_before_a_text(wrapping: str) -> None:
    model = build_model(wrapping).eval()
    assert needs_mask(model) is (wrapping in PROMPTING)
    if wrapping in PROMPTING:
        return
    with_mask, without = (language_model_loss(model, *build_batch(), masked=masked) for masked in (True, False))
    torch.testing.assert_close(without.sum / TARGETS, with_mask.sum / TARGETS, rtol=1e-6, atol=1e-6)
    expected, found = gradients_of(model, with_mask), gradients_of(model, without)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_model_that_looks_ahead_needs_its_mask() -> None:
    model = build_llama()
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    model.config.is_causal = False
    assert needs_mask(model)


def test_a_mixture_of_experts_keeps_its_mask() -> None:
    model = build_llama()
    model.config.num_local_experts = 8
    assert needs_mask(model)


def test_asking_for_the_mask_changes_neither_mode_nor_random_state() -> None:
    model = build_model("lora").train()
    state = torch.get_rng_state()
    needs_mask(model)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for a device."""

    WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().partition(".")[0] in self.WAITING:
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_loss_waits_for_the_device_where_transformers_looks_for_packed_rows_and_nowhere_else() -> None:
    """Which tokens are targets is found on the host. A mask would be looked at as well, whether it is all ones."""
    model = build_model("lora")
    with Waits() as waits:
        objective_of(language_model_loss(model, *build_batch(), masked=False)).backward()
    assert waits.seen == ["aten::nonzero", "aten::_local_scalar_dense"]


def build_gemma(softcapping: float | None) -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=softcapping,
    )
    return Gemma2ForCausalLM(config)


def test_fused_loss_is_not_supported_with_capped_logits() -> None:
    assert supports_fused_loss(build_gemma(None))
    assert may_fuse_without_weights(build_gemma(None))
    assert not supports_fused_loss(build_gemma(30.0))
    assert not may_fuse_without_weights(build_gemma(30.0))


def test_whole_logits_are_built_of_as_many_rows_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = build_model("full"), 10
    monkeypatch.setattr(
        language_loss, "EVALUATION_LOGITS_BYTES", 3 * language_loss.LOGIT_BYTES * VOCABULARY_SIZE * tokens
    )
    assert rows_at_once(model, 50, tokens, fused=False) == 3
    assert rows_at_once(model, 2, tokens, fused=False) == 2
    assert rows_at_once(model, 50, 100 * tokens, fused=False) == 1
    assert rows_at_once(model, 50, tokens, fused=True) == 50


def test_asking_for_support_changes_neither_mode_nor_random_state() -> None:
    model = build_model("lora").train()
    model.get_base_model().model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    supports_fused_loss(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def peak_bytes(model: nn.Module, *, fused: bool) -> int:
    """What one forward and backward pass allocates at its peak, by the profiler: the same figure every time."""
    input_ids = torch.arange(512).view(2, 256)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        language_model_loss(model, input_ids, torch.ones_like(input_ids), input_ids, fused=fused).sum.backward()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_fused_loss_takes_at_least_30_percent_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_loss, "SLICE_LOGITS_BYTES", 2**20)
    monkeypatch.setattr(language_loss, "MIN_SLICE_TOKENS", 64)
    sizes = {"vocab_size": 8192, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True))
    plain_bytes = peak_bytes(model, fused=False)
    logits_bytes = 2 * 255 * 8192 * 4
    assert plain_bytes > 2 * logits_bytes, "the plain loss holds the logits and their gradient"
    assert peak_bytes(model, fused=True) < 0.7 * plain_bytes
