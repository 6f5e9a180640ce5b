"""What does a training step cost beside a bare PyTorch loop of the same model on the same batches?

    python tests/bench/bench_step.py

SmolLM2-135M with some of its layers, LoRA of rank 32, batches of 4 rows of 60 to 220 tokens, padded on the right. The
bare loop is what a tutorial has: the model's own loss, backward, clipping, AdamW. Steps of both are interleaved, so
that what else the machine does falls on both; told are the median of the pairs' ratios and its quartiles.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from peftsweep.config.schema import HparamsConfig
from peftsweep.job.loop import LoopCallbacks, TrainingState, build_scheduler, train
from peftsweep.modalities.base import Batch, BatchLoss
from peftsweep.modalities.order import lengths_of, rows_of
from peftsweep.modalities.text.loss import IGNORED_LABEL, language_model_loss, needs_mask

VOCABULARY = 49_152


class Rows:
    """Implements modalities.base.TrainableTask as a text task does."""

    def __init__(self, model: nn.Module, *, fused: bool) -> None:
        self._fused, self._masked = fused, needs_mask(model)

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        return language_model_loss(model, ids, mask, labels, fused=self._fused, masked=self._masked)

    def targets(self, batch: Batch) -> int:
        return int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())

    def tokens(self, batch: Batch) -> int:
        return int(batch["attention_mask"].sum())

    def lengths(self, batch: Batch) -> list[int]:
        return lengths_of(batch)

    def rows(self, batch: Batch, which: Sequence[int]) -> Batch:
        return rows_of(batch, which)


def build_model(layers: int, device: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=layers, tie_word_embeddings=True, **sizes)
    model = LlamaForCausalLM(config).to(device, dtype)
    return get_peft_model(model, LoraConfig(r=32, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])).train()


def build_batches(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        lengths = torch.randint(60, 220, (4, 1), generator=generator)
        mask = (torch.arange(int(lengths.max())) < lengths).long()
        ids = torch.randint(VOCABULARY, tuple(mask.shape), generator=generator) * mask
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED_LABEL)})
    return batches


def bare_step(model: nn.Module, batches: Sequence[Batch], device: str) -> Callable[[], None]:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, source = torch.optim.AdamW(trained, lr=1e-4), itertools.cycle(batches)

    def step() -> None:
        batch = {key: tensor.to(device) for key, tensor in next(source).items()}
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def own_step(model: nn.Module, batches: Sequence[Batch], *, fused: bool) -> Callable[[], None]:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, source = torch.optim.AdamW(trained, lr=1e-4), itertools.cycle(batches)
    state = TrainingState(optimizer, build_scheduler(optimizer, "constant", 1, 0.0))
    task, hparams = Rows(model, fused=fused), HparamsConfig(eval_every=0, checkpoint_every=0)

    def step() -> None:
        train(model, task, source, state, dataclasses.replace(hparams, max_steps=state.step + 1), LoopCallbacks())

    return step


def seconds_of(step: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=20)
    options = parser.parse_args()
    batches, dtype = build_batches(options.pairs), getattr(torch, options.dtype)
    bare = bare_step(build_model(options.layers, options.device, dtype), batches, options.device)
    print(f"{options.layers} layers, {options.dtype}, {options.device}, {options.pairs} pairs")
    print("loss     bare s  own s   ratio  quartiles")
    for fused in (True, False):
        own = own_step(build_model(options.layers, options.device, dtype), batches, fused=fused)
        for warm in (bare, own):
            warm()
        pairs = [(seconds_of(bare, options.device), seconds_of(own, options.device)) for _ in range(options.pairs)]
        low, middle, high = statistics.quantiles([mine / theirs for theirs, mine in pairs], n=4)
        theirs, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
        name = "fused" if fused else "plain"
        print(f"{name:<7} {theirs:>7.3f} {mine:>6.3f} {middle:>7.3f}  {low:.3f} to {high:.3f}", flush=True)


if __name__ == "__main__":
    main()
