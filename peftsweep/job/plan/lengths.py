"""The longest row that training will meet: it decides the peak."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftsweep.config.schema import ImageGenConfig, JobConfig, TextTaskConfig
from peftsweep.job.plan.steps import FLUX2_PIXELS_PER_TOKEN
from peftsweep.modalities.base_model import BaseModel, spec_of
from peftsweep.modalities.building import build_task
from peftsweep.modalities.loading import EMBEDDED, base_location
from peftsweep.modalities.skeleton import Skeleton
from peftsweep.modalities.text.task import TextTask


@dataclass(frozen=True)
class Length:
    """tokens: of the longest row. source: where that comes from, in words."""

    tokens: int
    source: str


def longest_row(config: JobConfig, skeleton: Skeleton) -> Length:
    """Of the tokenised training data where rows and tokenizer are on this machine, else what rows are cut to."""
    if isinstance(config.task, ImageGenConfig):
        side = config.task.resolution // FLUX2_PIXELS_PER_TOKEN
        return Length(side * side + config.task.max_prompt_tokens, f"pictures of {config.task.resolution} pixels")
    limit = config.hparams.max_seq_length
    found = _measured(config, skeleton) if _is_at_hand(config) else None
    if found is None:
        return Length(limit, f"rows of hparams.max_seq_length={limit} tokens: no training data at hand")
    return Length(found, f"the longest training row has {found} tokens")


def _is_at_hand(config: JobConfig) -> bool:
    assert isinstance(config.task, TextTaskConfig)
    is_local_model = config.model.id == EMBEDDED or Path(config.model.id).expanduser().is_dir()
    is_local_data = bool(config.task.train_files) or config.task.source == "embedded" or config.model.id == EMBEDDED
    return is_local_model and is_local_data and config.task.source != "hub"


def _measured(config: JobConfig, skeleton: Skeleton) -> int | None:
    """None where rows or tokenizer can't be read: the job itself will say why."""
    try:
        base = BaseModel(skeleton.model, _tokenizer(config), "", config.model.id == EMBEDDED)
        task = build_task(config.task, config.hparams, base, Path(config.cache))
        assert isinstance(task, TextTask)
        return task.longest_training_row()
    except (OSError, ValueError):  # DataError and ModelError are ValueErrors; an interruption is none
        return None


def _tokenizer(config: JobConfig) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_location(spec_of(config.model)))
