"""What a plan must know of vision-language models: one without weights, its longest row, a step on such rows.

The whole length is traced as text, which takes in a language model what pictures take, and the vision tower by itself
on as many pictures. A pass of the model can't be followed without values: it asks which pictures are empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from peftsweep.config.schema import EMBEDDED, HparamsConfig, ModelConfig
from peftsweep.modalities.base import BaseModel, Batch, BatchLoss, Length, Skeleton
from peftsweep.modalities.load_errors import model_errors
from peftsweep.modalities.loading import base_location
from peftsweep.modalities.skeleton import described_source, transformers_config
from peftsweep.modalities.text.planned import FUSED_ATTENTION, LanguageStep, build_language_step
from peftsweep.modalities.vision_language.loader import load_processor, require_vision
from peftsweep.modalities.vision_language.settings import VqaConfig
from peftsweep.modalities.vision_language.task import VqaTask
from peftsweep.modalities.wrapped import base_of


@dataclass(frozen=True)
class SeeingStep(LanguageStep):
    """Rows of equal length with a picture each."""

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        seen = see(model, len(batch["input_ids"]))
        loss = super().loss(model, batch)
        return loss if seen is None else BatchLoss(loss.sum + seen.sum() * 0.0, loss.auxiliary)


def build_seeing_step(hparams: HparamsConfig, skeleton: Skeleton, rows: int, tokens: int) -> SeeingStep:
    step = build_language_step(hparams, skeleton, rows, tokens)
    return SeeingStep(step.batch, step.fused_loss)


def see(model: nn.Module, pictures: int) -> Tensor | None:
    """What tower and connector make of so many blank pictures; None for a model whose tower is of another kind."""
    inner: Any = getattr(base_of(model), "model", None)
    tower, connector = getattr(inner, "vision_model", None), getattr(inner, "connector", None)
    if tower is None or connector is None:
        return None
    side = tower.config.image_size
    weight = tower.embeddings.patch_embedding.weight
    pixels = torch.zeros((pictures, 3, side, side), dtype=weight.dtype, device=weight.device)
    states: Tensor = connector(tower(pixel_values=pixels).last_hidden_state)
    return states


def seeing_pass(rows: int) -> Callable[[nn.Module], object]:
    return lambda model: see(model, rows)


def longest_row(model: ModelConfig, task: VqaConfig, hparams: HparamsConfig, skeleton: Skeleton, cache: Path) -> Length:
    """Of the training data where rows and processor are on this machine, else what rows are cut to."""
    is_local_model = model.id == EMBEDDED or Path(model.id).expanduser().is_dir()
    if is_local_model and (task.train_files or model.id == EMBEDDED) and not task.dataset:
        try:
            processor = load_processor(model, base_location(model))
            is_embedded = model.id == EMBEDDED
            base = BaseModel(skeleton.model, processor.tokenizer, "", is_embedded, processor=processor)
            found, shown = VqaTask(task, hparams, base, cache).longest_training_row_with_pictures()
            return Length(found, f"the longest training row has {found} tokens, {shown} of them of pictures")
        except (OSError, ValueError):  # DataError and ModelError are ValueErrors: the job itself will say why
            pass
    limit = hparams.max_seq_length
    return Length(limit, f"rows of hparams.max_seq_length={limit} tokens: no training data at hand")


def build_skeleton(model: ModelConfig, dtype: torch.dtype, *, one_of_each: bool) -> Skeleton:
    """See `modalities.base.Modality.build_skeleton`."""
    config = transformers_config(model)
    require_vision(config, model.id)
    attention = "sdpa" if model.attn_implementation in FUSED_ATTENTION else model.attn_implementation
    options = {"dtype": dtype, "attn_implementation": attention, "trust_remote_code": model.trust_remote_code}
    with model_errors(model.id):
        built: Any = AutoModelForImageTextToText.from_config(config, **options)
    return Skeleton(built, described_source(model), config.get_text_config().to_dict())
