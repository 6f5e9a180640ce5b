"""What a plan must know of text: its longest row, the training step on such rows, and the last token of its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, DynamicCache

from peftsweep.config.schema import EMBEDDED, HparamsConfig, ModelConfig
from peftsweep.modalities.base import BaseModel, Batch, BatchLoss, Length, Skeleton
from peftsweep.modalities.loading import base_location
from peftsweep.modalities.text.loss import language_model_loss, may_fuse_loss
from peftsweep.modalities.text.settings import TextTaskConfig
from peftsweep.modalities.text.task import build_text_task


@dataclass(frozen=True)
class LanguageStep:
    """Rows of equal length, every token a target: no batch of that length takes more."""

    batch: Batch
    fused_loss: bool

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        fused = self.fused_loss and may_fuse_loss(model)
        return language_model_loss(model, batch["input_ids"], batch["attention_mask"], batch["labels"], fused=fused)

    def targets(self, batch: Batch) -> int:
        return batch["labels"].numel()

    def tokens(self, batch: Batch) -> int:
        return batch["labels"].numel()


def rows_of_targets(rows: int, tokens: int) -> Batch:
    ids = torch.zeros((rows, tokens), dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def longest_row(
    model: ModelConfig, task: TextTaskConfig, hparams: HparamsConfig, skeleton: Skeleton, cache: Path
) -> Length:
    """Of the tokenised training data where rows and tokenizer are on this machine, else what rows are cut to."""
    is_local_model = model.id == EMBEDDED or Path(model.id).expanduser().is_dir()
    is_local_data = bool(task.train_files) or task.source == EMBEDDED or model.id == EMBEDDED
    if is_local_model and is_local_data and task.source != "hub":
        try:
            tokenizer = AutoTokenizer.from_pretrained(base_location(model))
            base = BaseModel(skeleton.model, tokenizer, "", model.id == EMBEDDED)
            found = build_text_task(task, hparams, base, cache).longest_training_row()
            return Length(found, f"the longest training row has {found} tokens")
        except (OSError, ValueError):  # DataError and ModelError are ValueErrors: the job itself will say why
            pass
    limit = hparams.max_seq_length
    return Length(limit, f"rows of hparams.max_seq_length={limit} tokens: no training data at hand")


def last_token_of_answers(config: Mapping[str, Any], rows: int, length: int) -> Callable[[nn.Module], None]:
    """One more token for `rows` sequences that are as long as they get, with the keys and values of all before it."""
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    shape = (rows, config.get("num_key_value_heads") or heads, length - 1, size)

    def decode(model: nn.Module) -> None:
        cache, dtype = DynamicCache(), next(model.parameters()).dtype
        for layer in range(config["num_hidden_layers"]):
            cache.update(torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype), layer)
        model(
            input_ids=torch.zeros((rows, 1), dtype=torch.int64),
            attention_mask=torch.ones((rows, length), dtype=torch.int64),
            past_key_values=cache,
            use_cache=True,
        )

    return decode
