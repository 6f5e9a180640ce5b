"""A 4-bit base for several devices, by bitsandbytes: its linear layers are put in at once, and a block's weights are
packed when the block comes to its device. Until then they are views into their file, so that no rank ever has the whole
model in its memory, packed or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

COMPUTE_DTYPE = torch.bfloat16


def prepare_packing(model: nn.Module) -> None:
    """Replace every linear layer but the output head by one of 4 bits, its weight as it is for the moment."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    head = getattr(model, "get_output_embeddings", lambda: None)()
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear and layer is not head:
                packed = Linear4bit(
                    layer.in_features,
                    layer.out_features,
                    bias=layer.bias is not None,
                    compute_dtype=COMPUTE_DTYPE,
                    quant_type="nf4",
                    quant_storage=COMPUTE_DTYPE,  # what is gathered has one dtype
                    device="meta",
                )
                packed.weight = Params4bit(
                    layer.weight.detach(),
                    requires_grad=False,
                    quant_type="nf4",
                    quant_storage=COMPUTE_DTYPE,
                    module=packed,
                )
                packed.bias = layer.bias
                setattr(parent, name, packed.train(layer.training))
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # by which peft and transformers know such a model


def pack(block: nn.Module, device: torch.device) -> None:
    """Bring a block's 4-bit weights to the device, where they are packed."""
    layer: Any
    for layer in block.modules():
        weight: Any = layer._parameters.get("weight")
        if getattr(weight, "bnb_quantized", True) is False:
            layer.weight = weight.to(device)
            # Sharding leaves plain parameters; the layer finds this again by itself.
            layer.quant_state = layer.weight.quant_state
