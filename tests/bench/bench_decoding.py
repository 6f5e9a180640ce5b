"""How much faster than padded batches of `generate` is `decode_greedily`?

    python tests/bench/bench_decoding.py

Both decode the same 200 prompts with the same model, in one process; only the ratio means something. First the embedded
model on questions of its own test split, with an adapter if one is named. Then a small Llama whose body is real and
whose
answers are not: it counts down from a number in the prompt, so that answers spread in length as those of a large
fine-tuned model do (grade-school mathematics: most near 110 tokens, a few near the limit of 300).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from peftsweep.modalities.text.decoding import decode_greedily
from peftsweep.modalities.text.pocket import LLAMA_FOLDER
from peftsweep.modalities.text_world import make_problems

EOS = 0


class CountdownLlama(LlamaForCausalLM):
    """Answers a prompt that ends with token n by n - 1, n - 2, ... down to 0, at the cost of a real forward pass."""

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        outputs = super().forward(*inputs, **keywords)
        next_token = (keywords["input_ids"][:, -1:] - 1).clamp(min=0)
        outputs.logits = nn.functional.one_hot(next_token, self.config.vocab_size).float()
        return outputs


@dataclass(frozen=True)
class EndToken:
    """The one property of a tokenizer that decoding asks for."""

    eos_token_id: int


def build_countdown_model(device: str) -> LlamaForCausalLM:
    """4 layers of 192 and 2,048 words: the size of an embedded model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
    )
    return CountdownLlama(config).to(device).eval()


def build_countdown_prompts(n_prompts: int, max_new_tokens: int) -> list[list[int]]:
    """Prompts of 20 to 80 tokens; answers log-normal around 110 tokens, cut off at the limit."""
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.randn(n_prompts, generator=generator) * 0.45 + 4.7).exp().clamp(5, max_new_tokens).long()
    widths = torch.randint(20, 81, (n_prompts,), generator=generator)
    return [[5] * int(width) + [int(length) + 1] for width, length in zip(widths, lengths, strict=True)]


def load_embedded_model(adapter: str | None, device: str) -> tuple[nn.Module, int, list[list[int]]]:
    """The embedded model, its end token, and its test questions in the form of the task."""
    tokenizer = AutoTokenizer.from_pretrained(LLAMA_FOLDER)
    model = AutoModelForCausalLM.from_pretrained(LLAMA_FOLDER, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    texts = [f"Question: {p.query} Think step by step.\nAnswer:" for p in make_problems("test", 200)]
    return model.to(device).eval(), tokenizer.eos_token_id, tokenizer(texts)["input_ids"]


def decode_in_padded_batches(
    model: nn.Module, eos_token_id: int, prompts: Sequence[Sequence[int]], *, batch_size: int, max_new_tokens: int
) -> list[list[int]]:
    """The reference benchmark's way: batches in order, left-padded, each running until its longest answer ends."""
    config = GenerationConfig(
        do_sample=False, eos_token_id=eos_token_id, pad_token_id=eos_token_id, max_new_tokens=max_new_tokens
    )
    generations = []
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        width = max(map(len, batch))
        input_ids = torch.tensor([[eos_token_id] * (width - len(prompt)) + list(prompt) for prompt in batch])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
        output = model.generate(
            input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
        )
        generations += [_until(row, eos_token_id) for row in output[:, width:].tolist()]
    return generations


def _until(tokens: list[int], eos_token_id: int) -> list[int]:
    return tokens[: tokens.index(eos_token_id)] if eos_token_id in tokens else tokens


def seconds_of(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds of one call and its result: until the device is done, or of processor time on a shared CPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start, result


def compare(
    model: nn.Module, eos_token_id: int, prompts: list[list[int]], *, batch_size: int, max_new_tokens: int, device: str
) -> float:
    """Print one row of the table and answer the ratio: time of padded batches over ours."""
    sizes = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    padded_seconds, padded = seconds_of(lambda: decode_in_padded_batches(model, eos_token_id, prompts, **sizes), device)
    our_seconds, ours = seconds_of(
        lambda: decode_greedily(model, EndToken(eos_token_id), prompts, **sizes).generations, device
    )
    n_same = sum(mine == theirs for mine, theirs in zip(ours, padded, strict=True))
    lengths = sorted(map(len, ours))
    print(
        f"{batch_size:>10} {lengths[len(lengths) // 2]:>8} {lengths[-1]:>8} {padded_seconds:>10.2f} "
        f"{our_seconds:>8.2f} {padded_seconds / our_seconds:>6.2f} {n_same:>9}/{len(prompts)}"
    )
    return padded_seconds / our_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=300)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[50])
    parser.add_argument("--adapter", help="folder of an adapter for the embedded model, from a job")
    arguments = parser.parse_args()
    print(f"{arguments.prompts} prompts on {arguments.device}, torch {torch.__version__}, one process")
    print("batch_size   median  longest   padded s   ours s  ratio  same answers")
    countdown = build_countdown_model(arguments.device)
    prompts = build_countdown_prompts(arguments.prompts, arguments.max_new_tokens)
    for work in (load_embedded_model(arguments.adapter, arguments.device), (countdown, EOS, prompts)):
        print("pocket-llama" if work[0] is not countdown else "counting down")
        warm_up(*work)
        for batch_size in arguments.batch_sizes:
            compare(*work, batch_size=batch_size, max_new_tokens=arguments.max_new_tokens, device=arguments.device)


def warm_up(model: nn.Module, eos_token_id: int, prompts: list[list[int]]) -> None:
    """First calls cost more, on both sides."""
    decode_greedily(model, EndToken(eos_token_id), prompts[:4], batch_size=4, max_new_tokens=8)
    decode_in_padded_batches(model, eos_token_id, prompts[:4], batch_size=4, max_new_tokens=8)


if __name__ == "__main__":
    main()
