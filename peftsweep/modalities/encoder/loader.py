"""Load an encoder with room for a head of its own, its tokenizer, and the checkpoint's head for hidden words."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging as transformers_logging

from peftsweep.config.schema import EMBEDDED, QUANTISED, ModelConfig
from peftsweep.errors import ModelError, Problem
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.load_errors import model_errors, require_all_weights
from peftsweep.modalities.loading import quantised_placement, quiet, revision_of

HEADS = ("classifier", "score")  # what peft trains beside an adapter, by the name of the module
NOT_PRETRAINED = (*HEADS, "pooler", "head")  # of a model with a head of its own


class HiddenWords:
    """The checkpoint's own head, which finds hidden words from an encoder's last states. It is never trained."""

    def __init__(self, model: Any) -> None:
        """model: with the head, and an encoder, which is let go."""
        self._model, self._states = model, _GivenStates()
        setattr(model, model.base_model_prefix, self._states)
        model.requires_grad_(False).eval()

    def on(self, device: torch.device) -> HiddenWords:
        self._model.to(device)
        return self

    def __call__(self, states: Tensor) -> Tensor:
        """states: (b, s, h) -> logits (b, s, words)."""
        self._states.given = states
        logits: Tensor = self._model(input_ids=states.new_zeros(states.shape[:2], dtype=torch.long)).logits
        return logits


class _GivenStates(nn.Module):
    """In the place of the encoder."""

    given: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.given)


def load_encoder(spec: ModelConfig, location: str, device: torch.device) -> BaseModel:
    """An encoder in eval mode, frozen. location: a folder or a hub id.

    device: where quantised weights are placed; others are loaded on the host. Raises ModelError as load_base does, and
    for a model that reads from left to right only.
    """
    with model_errors(spec.id), quiet():
        options = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
        config = AutoConfig.from_pretrained(location, **options)
        require_encoder(config, spec.id)
        if spec.dtype in QUANTISED:
            placement = quantised_placement(spec, BitsAndBytesConfig, device)
        else:
            placement = {"dtype": getattr(torch, spec.dtype)}
        how = {"config": config, "output_loading_info": True, "attn_implementation": spec.attn_implementation}
        transformers_logging.set_verbosity_error()  # that a head is new is no news
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(location, **how, **options, **placement)
        with_words: Any = AutoModelForMaskedLM.from_pretrained(location, **how, **options, **placement)
    model, info = loaded
    encoder = f"{model.base_model_prefix}."
    new = tuple(f"{encoder}{name}" for name in NOT_PRETRAINED) + NOT_PRETRAINED
    require_all_weights([name for name in info["missing_keys"] if not name.startswith(new)], spec.id)
    model.requires_grad_(False).eval()
    words = None if with_words[1]["missing_keys"] else HiddenWords(with_words[0])
    tokenizer = load_tokenizer(spec, location)
    return BaseModel(model, tokenizer, revision_of(location, spec.revision), spec.id == EMBEDDED, words)


def require_encoder(config: Any, model_id: str) -> None:
    """Raises ModelError for a model that transformers knows no form of that finds hidden words."""
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        fix = "Choose an encoder, such as model=encoder model.id=FacebookAI/roberta-base."
        raise ModelError(Problem("the model must be an encoder", config.model_type, model_id, fix))


def load_tokenizer(spec: ModelConfig, location: str) -> Any:
    """A model's tokenizer, without the model. Raises ModelError where there is none."""
    with model_errors(spec.id):
        return AutoTokenizer.from_pretrained(location, revision=spec.revision, trust_remote_code=spec.trust_remote_code)


def give_head(model: Any, classes: list[str]) -> tuple[str, ...]:
    """A new head on the encoder, whose weights are drawn: for these classes, or a number where there are none. Answers
    the names of its modules."""
    config = copy.deepcopy(model.config)
    config.num_labels = len(classes) or 1
    if classes:
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
    config.problem_type = "single_label_classification" if classes else "regression"
    with torch.device("meta"):
        fresh = type(model)(config)
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    heads = {name: module for name, module in fresh.named_children() if name in HEADS}
    for name, module in heads.items():
        module.to_empty(device="cpu")
        for part in module.modules():
            model._init_weights(part)
        setattr(model, name, module.to(device, dtype).eval())
    model.config, model.num_labels = config, config.num_labels
    return tuple(heads)
