"""Load an encoder with room for a head of its own, its tokenizer, and the checkpoint's head for hidden words."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging as transformers_logging

from peftsweep.config.schema import EMBEDDED, QUANTISED
from peftsweep.errors import ModelError, Problem
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.encoder.settings import TEXT, WORD, EncoderConfig
from peftsweep.modalities.load_errors import model_errors, require_all_weights
from peftsweep.modalities.loading import quantised_placement, quiet, revision_of

# Modules between an encoder's states and a class, as transformers' models call them. Those that a checkpoint doesn't
# hold are the new head: also a pooler, which many have never pre-trained.
HEADS = ("classifier", "score", "pooler", "head")
AUTO_CLASSES: dict[str, Any] = {TEXT: AutoModelForSequenceClassification, WORD: AutoModelForTokenClassification}


@dataclass(frozen=True)
class EncoderParts:
    """What stands around an encoder. words: the checkpoint's head for hidden words, None where it has none; heads: the
    modules that it doesn't hold."""

    words: HiddenWords | None
    heads: tuple[str, ...]

    def on(self, device: torch.device) -> EncoderParts:
        if self.words is not None:
            self.words.on(device)
        return self


class HiddenWords:
    """The checkpoint's own head, which finds hidden words from an encoder's last states. It is never trained."""

    def __init__(self, model: Any) -> None:
        """model: with the head, and an encoder, which is let go."""
        self._model, self._states = model, _GivenStates()
        setattr(model, model.base_model_prefix, self._states)
        model.requires_grad_(False).eval()

    def on(self, device: torch.device) -> None:
        self._model.to(device)

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


def load_encoder(spec: EncoderConfig, location: str, device: torch.device) -> BaseModel:
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
        with _no_news_of_heads():
            loaded: Any = AUTO_CLASSES[spec.label_of].from_pretrained(location, **how, **options, **placement)
            with_words: Any = AutoModelForMaskedLM.from_pretrained(location, **how, **options, **placement)
    model, info = loaded
    missing = {key: next((name for name in HEADS if name in key.split(".")), "") for key in info["missing_keys"]}
    require_all_weights([key for key, head in missing.items() if not head], spec.id)
    model.requires_grad_(False).eval()
    words = None if with_words[1]["missing_keys"] else HiddenWords(with_words[0])
    parts = EncoderParts(words, tuple(name for name in HEADS if name in missing.values()))
    tokenizer = load_tokenizer(spec, location)
    return BaseModel(model, tokenizer, revision_of(location, spec.revision), spec.id == EMBEDDED, parts)


@contextmanager
def _no_news_of_heads() -> Iterator[None]:
    """transformers tells at length which weights are new: the head's, as they must be."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def require_encoder(config: Any, model_id: str) -> None:
    """Raises ModelError for a model that transformers knows no form of that finds hidden words."""
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        fix = "Choose an encoder, such as model=encoder model.id=FacebookAI/roberta-base."
        raise ModelError(Problem("the model must be an encoder", config.model_type, model_id, fix))


def load_tokenizer(spec: EncoderConfig, location: str) -> Any:
    """A model's tokenizer, without the model. Raises ModelError where there is none."""
    with model_errors(spec.id):
        return AutoTokenizer.from_pretrained(location, revision=spec.revision, trust_remote_code=spec.trust_remote_code)


def give_head(model: Any, modules: Collection[str], classes: Sequence[str]) -> None:
    """A new head on the encoder, whose weights are drawn: for these classes, or a number where there are none. modules:
    the names of those that are new."""
    config = copy.deepcopy(model.config)
    config.num_labels = len(classes) or 1
    if classes:
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
    config.problem_type = "single_label_classification" if classes else "regression"  # for those who load it
    with torch.device("meta"):
        fresh = type(model)(config)
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    for path, module in list(fresh.named_modules()):
        if path.rpartition(".")[2] in modules:
            module.to_empty(device="cpu")
            for part in module.modules():
                model._init_weights(part)
            model.set_submodule(path, module.to(device, dtype).eval().requires_grad_(False))
    model.config, model.num_labels = config, config.num_labels
