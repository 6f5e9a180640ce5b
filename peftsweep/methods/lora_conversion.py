"""Whether a conversion to LoRA can be right at all, found by trying it on a layer of the trained adapter.

peft 0.21 converts whatever holds a matrix that is added to a layer's weights. DoRA also rescales them, which is
dropped without a word; BD-LoRA's blocks come out in shapes that no LoRA layer takes.
"""

from __future__ import annotations

import copy
import warnings

import torch
from peft import PeftModel, convert_to_lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from peftsweep.errors import MethodError, Problem
from peftsweep.methods.attach import PEFT_ERRORS

MAX_LOSS = 0.01  # of an update's norm; what converts exactly loses 1e-6
SAMPLES = 64


def require_faithful(model: PeftModel, method: str) -> None:
    """Convert one layer at full rank and compare what it computes, in float32.

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
