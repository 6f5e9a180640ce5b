"""What a plan must know of text: a model without weights, its longest row, a step on such rows, an answer's end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from peftsweep.config.schema import EMBEDDED, HparamsConfig, ModelConfig
from peftsweep.modalities.base import BaseModel, Batch, BatchLoss, Length, Skeleton
from peftsweep.modalities.load_errors import model_errors
from peftsweep.modalities.loading import base_location
from peftsweep.modalities.order import lengths_of, rows_of
from peftsweep.modalities.skeleton import described_source, transformers_config
from peftsweep.modalities.text.loss import language_model_loss, may_fuse_loss, rows_at_once
from peftsweep.modalities.text.settings import TextTaskConfig
from peftsweep.modalities.text.task import build_text_task
from peftsweep.modalities.wrapped import base_of

# Attention of other packages keeps what torch's own kernels keep.
FUSED_ATTENTION = ("sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", None)


@dataclass(frozen=True)
class LanguageStep:
    """Rows of equal length, every token a target: no batch of that length takes more."""

    batch: Batch
    fused_loss: bool

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        return language_model_loss(model, ids, mask, labels, fused=self.fused_loss)

    def held_out_loss(self, model: nn.Module) -> BatchLoss:
        """Of as many of the rows as evaluation takes at once."""
        rows, tokens = self.batch["labels"].shape
        at_once = rows_at_once(model, rows, tokens, fused=self.fused_loss)
        return self.loss(model, {key: tensor[:at_once] for key, tensor in self.batch.items()})

    def targets(self, batch: Batch) -> int:
        return batch["labels"].numel()

    tokens = targets

    def lengths(self, batch: Batch) -> list[int]:
        return lengths_of(batch)

    def rows(self, batch: Batch, which: Sequence[int]) -> Batch:
        return rows_of(batch, which)


def build_language_step(hparams: HparamsConfig, skeleton: Skeleton, rows: int, tokens: int) -> LanguageStep:
    ids = torch.zeros((rows, tokens), dtype=torch.int64, device="cpu")
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    return LanguageStep(batch, hparams.fused_loss and may_fuse_loss(skeleton.model))


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


def last_token_of_answers(rows: int, length: int) -> Callable[[nn.Module], None]:
    """One more token for `rows` sequences that are as long as they get, with the keys and values of all before it."""

    def decode(model: nn.Module) -> None:
        # Which knows these by one name, whatever its file calls them.
        config: Any = base_of(model).config.get_text_config()
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        shape = (rows, getattr(config, "num_key_value_heads", None) or heads, length - 1, size)
        cache, dtype = DynamicCache(), next(model.parameters()).dtype
        for layer in range(config.num_hidden_layers):
            cache.update(torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype), layer)
        model(
            input_ids=torch.zeros((rows, 1), dtype=torch.int64),
            attention_mask=torch.ones((rows, length), dtype=torch.int64),
            past_key_values=cache,
            use_cache=True,
        )

    return decode


def build_language_skeleton(model: ModelConfig, dtype: torch.dtype, *, one_of_each: bool) -> Skeleton:
    """See `modalities.base.Modality.build_skeleton`."""
    config = transformers_config(model)
    if one_of_each:
        config.num_hidden_layers = 1
        if getattr(config, "layer_types", None):  # full or sliding attention, block by block
            config.layer_types = config.layer_types[:1]
    attention = "sdpa" if model.attn_implementation in FUSED_ATTENTION else model.attn_implementation
    options = {"dtype": dtype, "attn_implementation": attention, "trust_remote_code": model.trust_remote_code}
    with model_errors(model.id):
        built = AutoModelForCausalLM.from_config(config, **options)
    return Skeleton(built, described_source(model), config.to_dict())
