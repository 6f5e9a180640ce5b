"""What a plan must know of encoders: a model without weights, its longest row, a step on such rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from peftsweep.config.schema import EMBEDDED, HparamsConfig
from peftsweep.modalities.base import BaseModel, Batch, BatchLoss, Length, Skeleton
from peftsweep.modalities.encoder.loader import AUTO_CLASSES, HEADS, EncoderParts, load_tokenizer, require_encoder
from peftsweep.modalities.encoder.rows import build_source
from peftsweep.modalities.encoder.settings import WORD, EncoderConfig, LabelTaskConfig
from peftsweep.modalities.encoder.task import LabelTask
from peftsweep.modalities.load_errors import model_errors
from peftsweep.modalities.loading import base_location
from peftsweep.modalities.order import lengths_of, rows_of
from peftsweep.modalities.skeleton import described_source, transformers_config
from peftsweep.modalities.wrapped import on_device_of


@dataclass(frozen=True)
class EncoderStep:
    """Rows of equal length."""

    batch: Batch

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        inputs = on_device_of(model, batch)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits.float().flatten(0, -2)
        losses = functional.cross_entropy(logits, labels.flatten(), reduction="sum")
        return BatchLoss(losses, torch.zeros((), device=labels.device))

    def targets(self, batch: Batch) -> int:
        return batch["labels"].numel()

    def tokens(self, batch: Batch) -> int:
        return batch["input_ids"].numel()

    def lengths(self, batch: Batch) -> list[int]:
        return lengths_of(batch)

    def rows(self, batch: Batch, which: Sequence[int]) -> Batch:
        return rows_of(batch, which)


def build_encoder_step(rows: int, tokens: int, label_of: str) -> EncoderStep:
    ids = torch.zeros((rows, tokens), dtype=torch.int64, device="cpu")
    labels = torch.zeros_like(ids) if label_of == WORD else torch.zeros(rows, dtype=torch.int64, device="cpu")
    return EncoderStep({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})


def longest_row(model: EncoderConfig, task: LabelTaskConfig, hparams: HparamsConfig, skeleton: Skeleton) -> Length:
    """Of the tokenised training data where rows and tokenizer are on this machine, else what rows are cut to."""
    if model.id == EMBEDDED or Path(model.id).expanduser().is_dir():
        try:
            tokenizer = load_tokenizer(model, base_location(model))
            base = BaseModel(skeleton.model, tokenizer, "", model.id == EMBEDDED, EncoderParts(None, ()))
            source = build_source(task, embedded_model=base.is_embedded)
            found = LabelTask(task, hparams, source, base).longest_training_row()
            return Length(found, f"the longest training row has {found} tokens")
        except (OSError, ValueError):  # DataError and ModelError are ValueErrors: the job itself will say why
            pass
    limit = hparams.max_seq_length
    return Length(limit, f"rows of hparams.max_seq_length={limit} tokens: no training data at hand")


def build_encoder_skeleton(model: EncoderConfig, dtype: torch.dtype, *, one_of_each: bool) -> Skeleton:
    """See `modalities.base.Modality.build_skeleton`."""
    config = transformers_config(model)
    require_encoder(config, model.id)
    if one_of_each:
        config.num_hidden_layers = 1
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:1]
    options = {"dtype": dtype, "attn_implementation": model.attn_implementation or "sdpa"}
    with model_errors(model.id):
        automatic = AUTO_CLASSES[model.label_of]
        built = automatic.from_config(config, trust_remote_code=model.trust_remote_code, **options)
    heads = tuple(name for name in HEADS if any(path.rpartition(".")[2] == name for path, _ in built.named_modules()))
    return Skeleton(built, described_source(model), config.to_dict(), heads)
