"""On CUDA the fused loss is the plain loss in every precision, with at least 30% less memory."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from peftsweep.modalities.text.loss import language_model_loss, supports_fused_loss


def build_model(dtype: torch.dtype, method: str) -> nn.Module:
    """SmolLM2-135M with one layer of its thirty."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=1,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to("cuda", dtype)
    if method == "full":
        return model
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))


def build_batch() -> Tensor:
    return torch.randint(49_152, (4, 512), generator=torch.Generator().manual_seed(0)).cuda()


def step(model: nn.Module, *, fused: bool) -> Tensor:
    input_ids = build_batch()
    loss = language_model_loss(model, input_ids, torch.ones_like(input_ids), input_ids, fused=fused)
    mean = loss.sum / input_ids[:, 1:].numel()
    (mean + loss.auxiliary).backward()
    return mean.detach()


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.float().clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-3), (torch.float16, 2e-3)])
def test_value_is_the_plain_value(dtype: torch.dtype, tolerance: float, method: str) -> None:
    model = build_model(dtype, method)
    assert supports_fused_loss(model)
    with torch.no_grad():
        input_ids = build_batch()
        mask = torch.ones_like(input_ids)
        targets = input_ids[:, 1:].numel()
        plain = language_model_loss(model, input_ids, mask, input_ids, fused=False).sum / targets
        fused = language_model_loss(model, input_ids, mask, input_ids).sum / targets
    torch.testing.assert_close(fused, plain, rtol=0, atol=tolerance * 10 if dtype != torch.float32 else tolerance)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 5e-2)])
def test_gradients_are_the_plain_gradients(dtype: torch.dtype, tolerance: float, method: str) -> None:
    model = build_model(dtype, method)
    step(model, fused=False)
    plain = gradients_of(model)
    model.zero_grad()
    step(model, fused=True)
    for name, gradient in gradients_of(model).items():
        assert (gradient - plain[name]).norm() <= tolerance * plain[name].norm(), name


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_memory_is_at_least_30_percent_lower(dtype: torch.dtype, method: str, noted: Callable[..., None]) -> None:
    model = build_model(dtype, method)
    step(model, fused=True)  # cuBLAS has its workspaces from now on
    peaks = {}
    for fused in (False, True):
        model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(model, fused=fused)
        peaks[fused] = torch.cuda.max_memory_allocated() - held
    noted(fused_bytes=peaks[True], plain_bytes=peaks[False], ratio=peaks[True] / peaks[False])
    assert peaks[True] <= 0.7 * peaks[False]
