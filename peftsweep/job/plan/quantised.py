"""What bitsandbytes' layers take, for a model without weights: its kernels run on a GPU alone.

int4 (NF4): half a byte a weight and a float32 scale for each 64; a layer's weight is unpacked to the compute dtype for
its product, forward and backward, and let go. int8 (LLM.int8): a byte a weight and a float32 scale a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

NF4_BLOCK = 64  # weights that share a scale: bitsandbytes' default


class _UnpackedProduct(Function):
    """states (..., i) by a packed weight of shape (o, i): the result in the states' dtype."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        ctx.save_for_backward(packed)
        return states @ _unpacked(states, shape).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] @ _unpacked(grads[0], ctx.shape), None, None


def _unpacked(like: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def quantise_weights(model: nn.Module, dtype: str) -> int:
    """Pack every frozen linear layer of the base, less the output head, as transformers does at loading; answers how
    many weights that are."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    packed = 0
    for module in list(model.modules()):
        if type(module) is nn.Linear and module is not head and not module.weight.requires_grad:
            packed += module.weight.numel()
            _pack(module, dtype)
    return packed


def _pack(module: nn.Linear, dtype: str) -> None:
    shape = (module.out_features, module.in_features)
    weights = module.weight.numel()
    size = weights // 2 + 4 * weights // NF4_BLOCK if dtype == "int4" else weights + 4 * module.out_features
    bias = module.bias
    packed = torch.empty(size, dtype=torch.uint8, device="meta")
    del module.weight
    module.register_buffer("weight", packed, persistent=False)

    def forward(input: Tensor) -> Tensor:
        product: Tensor = _UnpackedProduct.apply(input, packed, shape)  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias

    module.forward = forward  # type: ignore[method-assign]
