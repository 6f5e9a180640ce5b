"""What a method can do, found by trying it on single layers with the installed peft: nothing here is typed by hand."""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel, convert_to_lora
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from peftsweep.config.schema import MethodConfig
from peftsweep.errors import MethodError, Problem
from peftsweep.methods.attach import PEFT_ERRORS, parse_peft_type
from peftsweep.methods.hooks.by_name import build_hook
from peftsweep.methods.hooks.calibration import LoftQ, MutatesBase
from peftsweep.methods.hooks.interface import HookContext
from peftsweep.methods.targets import TARGETS, with_targets

WIDTH = 128  # divisible by every block and vector length of the built-in methods
MAX_LOSS = 0.01  # of an update's norm, by a conversion to LoRA; what converts exactly loses 1e-6
SAMPLES = 64

# Initialisations from data or for a GPU: what they start from changes nothing about what the method can do.
NEEDS_PREPARATION = ("eva", "corda", "lora_ga", "loftq")


@dataclass(frozen=True)
class Capabilities:
    """None: can't be told from a single layer (the method wraps attention or whole blocks)."""

    mergeable: bool | None  # folds into the base weights: no cost at inference
    quantized_base: bool | None  # trains on an int8 or int4 base
    convertible_to_lora: bool | None  # peft can approximate the result by a LoRA adapter
    layers: tuple[str, ...]  # kinds of layers that it can be put on; empty: inputs, attention or whole blocks


def find_capabilities(method: MethodConfig) -> Capabilities:
    """Try a method on one layer of each kind. Takes about 0.1 s and leaves torch's random state as it was."""
    if method.peft_type is None:
        return Capabilities(mergeable=True, quantized_base=False, convertible_to_lora=None, layers=())
    peft_type = parse_peft_type(method.peft_type)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
    tuner_class = PEFT_TYPE_TO_TUNER_MAPPING[peft_type]
    if not hasattr(tuner_class, "inject_adapter") and not hasattr(tuner_class, "add_adapter"):  # prompt learning
        return Capabilities(mergeable=False, quantized_base=True, convertible_to_lora=False, layers=())
    arguments = _arguments(method)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        tuners = {kind: _try_layer(tuner_class, config_class, arguments, kind) for kind in LAYER_KINDS}
        working = {kind: tuner for kind, tuner in tuners.items() if tuner is not None}
        if not working:
            return Capabilities(None, None, None, ())
        kind, first = next(iter(working.items()))
        rewrites = _rewrites_weights(method, tuner_class, config_class)
        quantized = _takes_quantized(peft_type, tuner_class) and not rewrites
        again = _inject(tuner_class, config_class, arguments, LAYER_KINDS[kind].build())
        convertible = first.supports_lora_conversion() and _converts_faithfully(again)
        return Capabilities(_merges(first), quantized, convertible, tuple(working))


@dataclass(frozen=True)
class _Kind:
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[torch.Tensor, ...]]  # for one forward pass


def _floats(*shape: int, count: int = 1) -> Callable[[], tuple[torch.Tensor, ...]]:
    return lambda: tuple(torch.randn(shape) for _ in range(count))


LAYER_KINDS = {
    "Linear": _Kind(lambda: nn.Linear(WIDTH, WIDTH), _floats(2, WIDTH)),
    "Conv1D": _Kind(lambda: Conv1D(WIDTH, WIDTH), _floats(2, WIDTH)),  # GPT-2's transposed linear layer
    "Conv1d": _Kind(lambda: nn.Conv1d(WIDTH, WIDTH, 3), _floats(2, WIDTH, 4)),
    "Conv2d": _Kind(lambda: nn.Conv2d(WIDTH, WIDTH, 3), _floats(2, WIDTH, 4, 4)),
    "Conv3d": _Kind(lambda: nn.Conv3d(WIDTH, WIDTH, 1), _floats(2, WIDTH, 2, 2, 2)),
    "Embedding": _Kind(lambda: nn.Embedding(WIDTH, WIDTH), lambda: (torch.arange(4),)),
    "LayerNorm": _Kind(lambda: nn.LayerNorm(WIDTH), _floats(2, WIDTH)),
    "MultiheadAttention": _Kind(lambda: nn.MultiheadAttention(WIDTH, 4), _floats(2, 4, WIDTH, count=3)),
}


class _Host(nn.Module):
    """A model of one layer: enough of one for peft to inject into. Named as BD-LoRA's table of targets has it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.config = PretrainedConfig.from_dict(
            {"model_type": "llama", "num_hidden_layers": 4, "tie_word_embeddings": False}
        )
        self.q_proj = layer

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.q_proj(*inputs)


def _arguments(method: MethodConfig) -> dict[str, Any]:
    """The method's PEFT arguments, completed by its hook as for a run of 100 steps."""
    ids = torch.arange(WIDTH).reshape(4, -1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    context = HookContext(_Host(nn.Identity()), total_steps=100, batches=[batch])
    arguments = dict(method.peft)
    if arguments.get("init_lora_weights") in NEEDS_PREPARATION:
        return {key: value for key, value in arguments.items() if key not in ("init_lora_weights", "loftq_config")}
    return build_hook(method.hook).configure(arguments, context)


def _try_layer(tuner_class: Any, config_class: type[PeftConfig], arguments: dict[str, Any], kind: str) -> Any:
    """The tuner around one layer, or None if peft refuses."""
    layer = LAYER_KINDS[kind]
    try:
        tuner = _inject(tuner_class, config_class, arguments, layer.build())
        if not isinstance(tuner, BaseTuner):
            return None
        tuner(*layer.inputs())  # some accept any layer and fail only when it is used
    except PEFT_ERRORS:
        return None
    return tuner


def _inject(tuner_class: Any, config_class: type[PeftConfig], arguments: dict[str, Any], layer: nn.Module) -> Any:
    targets: dict[str, Any] = {"target_modules": ["q_proj"]}
    if "feedforward_modules" in config_class.__dataclass_fields__:
        targets["feedforward_modules"] = []
    return tuner_class(_Host(layer), config_class(**(arguments | targets)), "default")


def _converts_faithfully(tuner: Any) -> bool:
    """Whether a layer computes the same as LoRA of full rank, once its adapter's weights are no longer the first."""
    with torch.no_grad():
        for weight in tuner.parameters():
            if weight.requires_grad and weight.is_floating_point():
                weight.add_(0.1 * torch.randn_like(weight))
    try:
        return lost_at_full_rank(tuner.model.q_proj) <= MAX_LOSS
    except PEFT_ERRORS:
        return False


def _merges(tuner: BaseTuner) -> bool:
    try:
        tuner.merge_adapter()
    except (NotImplementedError, ValueError):
        return False
    return True


def _takes_quantized(peft_type: PeftType, tuner_class: type) -> bool:
    """peft keeps quantised layers in a bnb.py per method, or resolves a backend in the method's model.py.

    A method that leaves linear layers alone (norms, embeddings) has nothing to do with their quantisation.
    """
    module = sys.modules[tuner_class.__module__]
    package = tuner_class.__module__.rpartition(".")[0]
    targets = with_targets(peft_type, {}, None, "llama").get("target_modules", ())
    return (
        importlib.util.find_spec(f"{package}.bnb") is not None
        or hasattr(module, "resolve_quantization_backend")
        or set(targets).isdisjoint(TARGETS["llama"]["linear"])
    )


class Params4bit(nn.Parameter):
    """Looks to peft like bitsandbytes' class of this name, by which it tells 4-bit weights without importing it."""


def _rewrites_weights(method: MethodConfig, tuner_class: Any, config_class: type[PeftConfig]) -> bool:
    """Whether the initialisation computes with the base weights in floating point, and so refuses a quantised layer."""
    if isinstance(build_hook(method.hook), MutatesBase | LoftQ):
        return True
    layer = nn.Linear(WIDTH, WIDTH)
    layer.weight = Params4bit(torch.zeros(WIDTH, WIDTH, dtype=torch.uint8), requires_grad=False)
    try:
        _inject(tuner_class, config_class, _arguments(method), layer)
    except TypeError:
        return True
    except PEFT_ERRORS:  # got past the check of the weight's type, to where it wants bitsandbytes itself
        return False
    return False


def require_faithful(model: PeftModel, method: str) -> None:
    """Convert one layer at full rank and compare what it computes, in float32.

    peft 0.21 converts whatever holds a matrix that is added to a layer's weights. DoRA also rescales them, which is
    dropped without a word; BD-LoRA's blocks come out in shapes that no LoRA layer takes.
    Raises MethodError if something of the update is lost although no rank was cut.
    """
    layer = next((module for module in model.modules() if isinstance(module, BaseTunerLayer)), None)
    # A layer of a quantised base can't be held in float32.
    if layer is None or not all(weight.is_floating_point() for weight in layer.parameters()):
        return
    try:
        lost = lost_at_full_rank(layer)
    except PEFT_ERRORS as error:
        rule = f"peft can't convert this adapter of {method} to LoRA: {error}"
        raise MethodError(Problem(rule, source=f"method={method}")) from error
    if lost > MAX_LOSS:
        rule = f"peft's conversion of {method} to LoRA drops a part of what it learnt, {lost:.0%} of a layer's update"
        raise MethodError(Problem(rule, source=f"method={method}", fix="Use export merged."))


@torch.no_grad()
def lost_at_full_rank(layer: nn.Module) -> float:
    """Norm of what a converted layer computes otherwise than the layer, relative to what its adapter does; 0 to 1 and
    above. 0 for an adapter that does nothing."""
    layer = copy.deepcopy(layer).float().eval()
    base = layer.get_base_layer()  # type: ignore[operator]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LoRA to LoRA, at full rank: it is a trial
        _, weights = convert_to_lora(nn.ModuleDict({"layer": layer}), rank=min(base.weight.shape))
    (down,) = (tensor for name, tensor in weights.items() if name.endswith("lora_A.weight"))
    (up,) = (tensor for name, tensor in weights.items() if name.endswith("lora_B.weight"))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, down.shape[1], generator=generator).to(down.device)
    update = layer(inputs) - base(inputs)
    converted = inputs @ down.float().T @ up.float().T
    size = update.norm()
    return float((converted - update).norm() / size) if size > 0 else 0.0
