"""Load a causal language model and its tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from peftsweep.config.schema import EMBEDDED, QUANTISED, ModelConfig
from peftsweep.errors import ModelError, Problem
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.load_errors import model_errors, require_all_weights
from peftsweep.modalities.loading import quantised_placement, quiet, revision_of


def load_language_model(spec: ModelConfig, location: str, device: torch.device) -> BaseModel:
    """A causal language model in eval mode, frozen. location: a folder or a hub id.

    device: where quantised weights are placed; others are loaded on the host. Raises ModelError as load_base does.
    """
    with model_errors(spec.id), quiet():
        options = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
        config = AutoConfig.from_pretrained(location, **options)
        if spec.dtype in QUANTISED:
            placement = quantised_placement(spec, BitsAndBytesConfig, device)
        else:
            placement = {"dtype": getattr(torch, spec.dtype)}
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location,
            config=config,
            output_loading_info=True,
            attn_implementation=spec.attn_implementation,
            **options,
            **placement,
        )
    model, info = loaded
    require_all_weights(info["missing_keys"], spec.id)
    model.requires_grad_(False).eval()
    return BaseModel(model, load_tokenizer(spec, location), revision_of(location, spec.revision), spec.id == EMBEDDED)


def load_tokenizer(spec: ModelConfig, location: str) -> Any:
    """A model's tokenizer, without the model. Raises ModelError where there is none, or none that ends a text."""
    with model_errors(spec.id):
        tokenizer = AutoTokenizer.from_pretrained(
            location, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    if tokenizer.eos_token_id is None:  # answers are taught to end with it, and generation stops at it
        rule = "the tokenizer must have an end-of-sequence token"
        raise ModelError(Problem(rule, source=spec.id, fix="Set eos_token in its tokenizer_config.json."))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
