"""What evaluation takes, apart from training: held-out losses, answers with their cache of keys and values, pictures.

A language model holds keys and values of `eval_batch_size` sequences of the longest prompt and answer, and reads them
for each new token; a diffusion transformer denoises `eval_batch_size` pictures. Text encoder and VAE, which visit the
device before and after, are not in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftsweep.config.schema import JobConfig, TextTaskConfig
from peftsweep.job.plan.steps import TracedStep
from peftsweep.job.plan.trace import following
from peftsweep.memory.ledger import Category, Ledger
from peftsweep.modalities.skeleton import Skeleton


def evaluation_events(
    config: JobConfig, skeleton: Skeleton, model: nn.Module, step: TracedStep, tokens: int
) -> list[tuple[tuple[int, int], ...]]:
    """Histories of allocations, one for each thing that evaluation does. step: of eval_batch_size rows; tokens: of the
    longest row."""
    was_training = model.training
    model.eval()
    try:
        found = [_loss(model, step)]
        if isinstance(config.task, TextTaskConfig):
            found.append(_answer(config, skeleton, model, tokens + config.task.max_new_tokens))
        return found
    finally:
        model.train(was_training)


def _loss(model: nn.Module, step: TracedStep) -> tuple[tuple[int, int], ...]:
    ledger = Ledger()
    with torch.no_grad(), following(ledger, model):
        step.loss(model, {key: tensor.to("meta") for key, tensor in step.batch.items()})
    return ledger.trace().events


def _answer(config: JobConfig, skeleton: Skeleton, model: nn.Module, length: int) -> tuple[tuple[int, int], ...]:
    """One more token for sequences that are as long as they get."""
    ledger, rows = Ledger(), config.hparams.eval_batch_size
    with torch.no_grad(), following(ledger, model):
        cache = _filled_cache(skeleton.config, rows, length - 1, next(model.parameters()).dtype)
        ledger.category = Category.ACTIVATIONS
        mask = torch.ones((rows, length), dtype=torch.int64)
        model(
            input_ids=torch.zeros((rows, 1), dtype=torch.int64),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
    return ledger.trace().events


def _filled_cache(config: dict[str, Any], rows: int, length: int, dtype: torch.dtype) -> Any:
    from transformers import DynamicCache

    cache, heads = DynamicCache(), config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    shape = (rows, config.get("num_key_value_heads") or heads, length, size)
    for layer in range(config["num_hidden_layers"]):
        cache.update(torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype), layer)
    return cache
