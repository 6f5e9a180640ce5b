"""What a method can do, found by trying it on single layers with the installed peft: nothing here is typed by hand."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftsweep.config import MethodConfig
from peftsweep.methods.attach import PEFT_ERRORS, parse_peft_type
from peftsweep.methods.hooks import Site, build_hook

WIDTH = 128  # divisible by every block and vector length of the built-in methods

# Initialisations from data or for a GPU: what they start from changes nothing about what the method can do.
NEEDS_PREPARATION = ("eva", "corda", "lora_ga", "loftq")


@dataclass(frozen=True)
class Capabilities:
    """None: can't be told from a single layer (the method wraps attention or whole blocks)."""

    mergeable: bool | None  # folds into the base weights: no cost at inference
    quantized_base: bool | None  # trains on an int8 or int4 base
    convertible_to_lora: bool | None  # peft can approximate the result by a LoRA adapter
    layers: tuple[str, ...]  # kinds of layers that it can be put on; empty: inputs, attention or whole blocks

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_capabilities(method: MethodConfig) -> Capabilities:
    """Try a method on one layer of each kind. Takes about 0.1 s and leaves torch's random state as it was."""
    if method.peft_type is None:
        return Capabilities(mergeable=True, quantized_base=False, convertible_to_lora=None, layers=())
    peft_type = parse_peft_type(method.peft_type)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
    tuner_class = PEFT_TYPE_TO_TUNER_MAPPING[peft_type]
    if _is_prompt_learning(tuner_class):
        return Capabilities(mergeable=False, quantized_base=True, convertible_to_lora=False, layers=())
    arguments = _arguments(method)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        tuners = {kind: _try_layer(tuner_class, config_class, arguments, kind) for kind in LAYER_KINDS}
        working = {kind: tuner for kind, tuner in tuners.items() if tuner is not None}
        if not working:
            return Capabilities(None, None, None, ())
        first = next(iter(working.values()))
        return Capabilities(_merges(first), _takes_quantized(tuner_class), first.supports_lora_conversion(), tuple(working))


LAYER_KINDS: dict[str, Any] = {
    "Linear": lambda: nn.Linear(WIDTH, WIDTH),
    "Conv1D": lambda: Conv1D(WIDTH, WIDTH),  # GPT-2's transposed linear layer
    "Conv1d": lambda: nn.Conv1d(WIDTH, WIDTH, 3),
    "Conv2d": lambda: nn.Conv2d(WIDTH, WIDTH, 3),
    "Conv3d": lambda: nn.Conv3d(WIDTH, WIDTH, 1),
    "Embedding": lambda: nn.Embedding(WIDTH, WIDTH),
    "LayerNorm": lambda: nn.LayerNorm(WIDTH),
    "MultiheadAttention": lambda: nn.MultiheadAttention(WIDTH, 4),
}


class _Host(nn.Module):
    """A model of one layer: enough of one for peft to inject into."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="custom", num_hidden_layers=4, tie_word_embeddings=False)
        self.layer = layer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs)


def _is_prompt_learning(tuner_class: type) -> bool:
    return not hasattr(tuner_class, "inject_adapter") and not hasattr(tuner_class, "add_adapter")


def _arguments(method: MethodConfig) -> dict[str, Any]:
    """The method's PEFT arguments, completed by its hook as for a run of 100 steps."""
    ids = torch.arange(WIDTH).reshape(4, -1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    site = Site(_Host(nn.Identity()), total_steps=100, batches=[batch])
    arguments = dict(method.peft)
    if arguments.get("init_lora_weights") in NEEDS_PREPARATION:
        return {key: value for key, value in arguments.items() if key not in ("init_lora_weights", "loftq_config")}
    return build_hook(method.hook).configure(arguments, site)


def _try_layer(tuner_class: Any, config_class: type[PeftConfig], arguments: dict[str, Any], kind: str) -> Any:
    """The tuner around one layer, or None if peft refuses."""
    targets = {"target_modules": ["layer"]}
    if "feedforward_modules" in config_class.__dataclass_fields__:
        targets["feedforward_modules"] = []
    try:
        tuner = tuner_class(_Host(LAYER_KINDS[kind]()), config_class(**(arguments | targets)), "default")
    except PEFT_ERRORS:
        return None
    return tuner if isinstance(tuner, BaseTuner) else None


def _merges(tuner: BaseTuner) -> bool:
    try:
        tuner.merge_adapter()
    except PEFT_ERRORS:
        return False
    return True


def _takes_quantized(tuner_class: type) -> bool:
    """peft keeps quantised layers in a bnb.py per method, or resolves a backend in the method's model.py."""
    module = sys.modules[tuner_class.__module__]
    package = tuner_class.__module__.rpartition(".")[0]
    return importlib.util.find_spec(f"{package}.bnb") is not None or hasattr(module, "resolve_quantization_backend")
