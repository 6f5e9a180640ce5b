"""Operations whose CUDA kernels keep less than the step-by-step versions that every other device has.

Attention never holds its (heads x tokens x tokens) weights on CUDA, and a fused RMS norm no float32 copy of its input.
On the meta device torch takes the long way, so for a trace these stand in: the right shapes, kept and let go when the
kernels would, and no computation. An optimizer's fused step is let run there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


class _Attention(Function):
    """Flash or memory-efficient attention. query: (b, h, s, d); key, value: (b, k, t, d), k a divisor of h."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        width = value.shape[-1]  # seldom another than the query's
        output = torch.empty_like(query) if width == query.shape[-1] else query.new_empty((*query.shape[:-1], width))
        log_sum_exp = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, log_sum_exp, bias)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        accumulator = torch.empty_like(query, dtype=torch.float32)  # the kernels add up the query's gradient in it
        heads = query.shape[1]
        found = (torch.empty_like(query), _shared_grad(key, heads), _shared_grad(value, heads), None)
        del accumulator
        return found


def _shared_grad(tensor: Tensor, heads: int) -> Tensor:
    """Gradient of keys or values that several heads share: first of each head, then their sum."""
    if tensor.shape[1] == heads:
        return torch.empty_like(tensor)
    each = torch.empty((tensor.shape[0], heads, *tensor.shape[2:]), dtype=tensor.dtype, device=tensor.device)
    return each.unflatten(1, (tensor.shape[1], -1)).sum(dim=2)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """In place of torch.nn.functional.scaled_dot_product_attention."""
    bias = attn_mask
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # the kernels add what they are given
        bias = torch.zeros_like(attn_mask, dtype=query.dtype)
    output: Tensor = _Attention.apply(query, key, value, bias)  # type: ignore[no-untyped-call]
    return output


class _RmsNorm(Function):
    """torch's fused RMS norm: of its input it keeps one number a row."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor | None, n_dims: int) -> Tensor:
        scale = torch.empty(states.shape[:-n_dims], dtype=torch.float32, device=states.device)
        ctx.save_for_backward(states, weight, scale)
        return torch.empty_like(states)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, _ = ctx.saved_tensors
        return torch.empty_like(states), torch.empty_like(weight) if ctx.needs_input_grad[1] else None, None


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """In place of torch.nn.functional.rms_norm."""
    output: Tensor = _RmsNorm.apply(input, weight, len(normalized_shape))  # type: ignore[no-untyped-call]
    return output


class _Sparse(Function):
    """A sparse tensor takes what its indices and values take. Added to a dense one it leaves a dense one; its gradient
    is that of its values, with a copy of the indices while it is found."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, size: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(values, indices)
        return values.new_empty(()).expand(size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, indices = ctx.saved_tensors
        copied = torch.empty_like(indices)
        found = torch.empty_like(values)
        del copied
        return found, None, None


def _sparse_coo_tensor(indices: Tensor, values: Tensor, size: Sequence[int], **options: Any) -> Tensor:
    """In place of torch.sparse_coo_tensor."""
    output: Tensor = _Sparse.apply(values, indices, tuple(size))  # type: ignore[no-untyped-call]
    return output


STAND_INS: dict[tuple[Any, str], Callable[..., Any]] = {
    (functional, "scaled_dot_product_attention"): _attention,
    (functional, "rms_norm"): _rms_norm,
    (torch, "sparse_coo_tensor"): _sparse_coo_tensor,
    (import_module("torch.optim.optimizer"), "_get_fused_kernels_supported_devices"): lambda: ["meta"],
}


@contextmanager
def kernels_as_on_cuda() -> Iterator[None]:
    """Exchange the functions for as long as it lasts. A torch function mode would be simpler, but is not in force
    where checkpointed layers are computed again."""
    own = {(module, name): getattr(module, name) for module, name in STAND_INS}
    try:
        for (module, name), stand_in in STAND_INS.items():
            setattr(module, name, stand_in)
        yield
    finally:
        for (module, name), function in own.items():
            setattr(module, name, function)
