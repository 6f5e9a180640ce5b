"""Load a vision-language model with its processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
)
from transformers.utils import logging as transformers_logging

from peftsweep.config.schema import EMBEDDED, QUANTISED, ModelConfig
from peftsweep.errors import ModelError, Problem
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.load_errors import model_errors, require_all_weights
from peftsweep.modalities.loading import quantised_placement, quiet, revision_of


def load_vision_language_model(spec: ModelConfig, location: str, device: torch.device) -> BaseModel:
    """A vision-language model in eval mode, frozen. location: a folder or a hub id.

    device: where quantised weights are placed; others are loaded on the host. Raises ModelError as load_base does, and
    for a model that reads text alone, or comes without a processor of pictures.
    """
    with model_errors(spec.id), quiet():
        options = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
        config = AutoConfig.from_pretrained(location, **options)
        require_vision(config, spec.id)
        processor = load_processor(spec, location)
        if spec.dtype in QUANTISED:
            placement = quantised_placement(spec, BitsAndBytesConfig, device)
        else:
            placement = {"dtype": getattr(torch, spec.dtype)}
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
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
    revision = revision_of(location, spec.revision)
    return BaseModel(model, processor.tokenizer, revision, spec.id == EMBEDDED, processor=processor)


def require_vision(config: Any, model_id: str) -> None:
    """Raises ModelError for a model that reads text alone."""
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        fix = "Choose one that is shown pictures, such as model=smolvlm-256m; for text alone there is task=sft."
        raise ModelError(Problem("the model must read pictures", config.model_type, model_id, fix))


def load_processor(spec: ModelConfig, location: str) -> Any:
    """A model's processor, without the model. Raises ModelError where there is none, none for pictures, or one whose
    tokenizer ends no text."""
    with model_errors(spec.id), _no_news_of_backends():
        processor = AutoProcessor.from_pretrained(
            location, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    if not hasattr(processor, "image_processor") or not hasattr(processor, "image_token"):
        rule = "the model must come with a processor of pictures and text"
        fix = "Copy its processor_config.json and preprocessor_config.json beside the weights."
        raise ModelError(Problem(rule, type(processor).__name__, spec.id, fix))
    tokenizer = processor.tokenizer
    if tokenizer.eos_token_id is None:
        rule = "the tokenizer must have an end-of-sequence token"
        raise ModelError(Problem(rule, source=spec.id, fix="Set eos_token in its tokenizer_config.json."))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


@contextmanager
def _no_news_of_backends() -> Iterator[None]:
    """Without torchvision transformers takes Pillow, as it should, and says so each time."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
