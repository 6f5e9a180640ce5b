"""A causal language model without weights, from its configuration alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peftsweep.config.schema import ModelConfig
from peftsweep.modalities.base import Skeleton
from peftsweep.modalities.load_errors import model_errors
from peftsweep.modalities.loading import base_location
from peftsweep.modalities.skeleton import TABLE, described_source, known_architecture

# Attention of other packages keeps what torch's own kernels keep.
FUSED_ATTENTION = ("sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", None)


def build_language_skeleton(model: ModelConfig, dtype: torch.dtype, *, one_of_each: bool) -> Skeleton:
    """See `modalities.base.Modality.build_skeleton`."""
    config, source = _configuration(model)
    if one_of_each:
        config.num_hidden_layers = 1
        if getattr(config, "layer_types", None):  # full or sliding attention, block by block
            config.layer_types = config.layer_types[:1]
    attention = "sdpa" if model.attn_implementation in FUSED_ATTENTION else model.attn_implementation
    options = {"dtype": dtype, "attn_implementation": attention, "trust_remote_code": model.trust_remote_code}
    with model_errors(model.id):
        built = AutoModelForCausalLM.from_config(config, **options)
    return Skeleton(built, source, config.to_dict())


def _configuration(model: ModelConfig) -> tuple[Any, str]:
    known = known_architecture(model)
    if known is not None:
        return AutoConfig.for_model(**known), TABLE
    location = base_location(model)
    with model_errors(model.id):
        config = AutoConfig.from_pretrained(
            location, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    return config, described_source(model)
