"""How much memory does the fused loss save on one training step with the logits of SmolLM2-135M?

    python tests/bench/bench_language_loss.py

One layer of SmolLM2's size (hidden 576, vocabulary 49,152), batch 4 of 512 tokens, forward and backward in float32,
once for LoRA (the head is frozen) and once in full. Memory is what the step adds to weights and batch at its peak: on
CUDA from the allocator, on the CPU by adding up the profiler's allocations, so that the figure is the same every time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from peftsweep.modalities.text.loss import language_model_loss


def build_model(method: str, device: str, dtype: torch.dtype) -> nn.Module:
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
    model = LlamaForCausalLM(config).to(device, dtype)
    return model if method == "full" else get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """Memory that one step takes at its peak, beside what was held before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def seconds_of(step: Callable[[], None], device: str) -> float:
    """Seconds of one step: until the device is done, or of processor time on a shared CPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def build_step(model: nn.Module, batch_size: int, n_tokens: int, *, fused: bool) -> Callable[[], None]:
    """One forward and backward pass on random tokens."""
    input_ids = torch.randint(49_152, (batch_size, n_tokens), device=model.device)
    mask = torch.ones_like(input_ids)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        (language_model_loss(model, input_ids, mask, input_ids, fused=fused).sum / input_ids.numel()).backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    arguments = parser.parse_args()
    print(f"{arguments.batch_size} x {arguments.tokens} tokens, {arguments.dtype}, {arguments.device}")
    print("method  plain MiB  fused MiB   saved   plain s  fused s")
    for method in ("lora", "full"):
        model = build_model(method, arguments.device, getattr(torch, arguments.dtype))
        steps = [build_step(model, arguments.batch_size, arguments.tokens, fused=fused) for fused in (False, True)]
        plain_bytes, fused_bytes = (peak_bytes(step, arguments.device) for step in steps)
        plain_seconds, fused_seconds = (seconds_of(step, arguments.device) for step in steps)
        print(
            f"{method:<6} {plain_bytes / 2**20:>10.0f} {fused_bytes / 2**20:>10.0f} "
            f"{1 - fused_bytes / plain_bytes:>7.0%} {plain_seconds:>9.2f} {fused_seconds:>8.2f}"
        )


if __name__ == "__main__":
    main()
