"""What a rank holds of a model that several hold in parts: its share of every block, and of the blocks at work all.

It follows what FSDP2 does (torch.distributed.fsdp, `_fsdp_param_group.py`): a block is gathered before its forward pass
and again before its backward pass, and let go after each. Two buffers to gather into live in a pool of their own, one
to scatter gradients from too, so that nothing else gets their memory; the next block is fetched while one is at work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import register_multi_grad_hook

from peftsweep.config.schema import ParallelConfig
from peftsweep.job.checkpoint import kept_whole
from peftsweep.memory.ledger import Category, Ledger
from peftsweep.modalities.wrapped import divisible_blocks

BUFFERS = 2  # to gather into


class Shards:
    """The parts of one model on the meta device."""

    def __init__(self, model: nn.Module, parallel: ParallelConfig) -> None:
        blocks = divisible_blocks(model) if parallel.dp_shard_size > 1 else []
        kept = set(map(id, kept_whole(model)))
        self._parallel = parallel
        self._weights = {block: [one for one in _weights(block) if id(one) not in kept] for block in blocks}
        self._in_parts = {id(one) for weights in self._weights.values() for one in weights}

    def share(self, tensor: Tensor) -> float:
        """How much of a weight is always on this rank's device."""
        if id(tensor) not in self._in_parts:
            return 1.0
        return 0.0 if self._parallel.offload else 1.0 / self._parallel.dp_shard_size

    @property
    def host_bytes(self) -> int:
        """Of parts that wait on the host."""
        size = sum(one.nbytes for weights in self._weights.values() for one in weights)
        return size // self._parallel.dp_shard_size if self._parallel.offload else 0

    @contextmanager
    def gathering(self, ledger: Ledger) -> Iterator[None]:
        """Book what passes through the model gather, and make what a rank keeps of trained weights small again."""
        if not self._weights:
            yield
            return
        largest = max(_bytes(weights) for weights in self._weights.values())
        is_trained = any(one.requires_grad for weights in self._weights.values() for one in weights)
        buffers = [ledger.take(largest, Category.GATHERED) for _ in range(BUFFERS + is_trained)]
        ledger.divided = {
            one.shape: self._parallel.dp_shard_size
            for weights in self._weights.values()
            for one in weights
            if one.requires_grad
        }
        passes = _Passes(ledger, self._weights, self._parallel)
        handles = [handle for block in self._weights for handle in passes.hooks(block)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            passes.let_go()
            for buffer in buffers:
                ledger.give(buffer)


class _Passes:
    """Which blocks are whole at the moment."""

    def __init__(self, ledger: Ledger, weights: dict[nn.Module, list[Tensor]], parallel: ParallelConfig) -> None:
        self._ledger, self._weights, self._parallel = ledger, weights, parallel
        self._gathered: dict[nn.Module, int] = {}  # -> its entry in the ledger
        self._behind: nn.Module | None = None  # whose backward pass is under way

    def hooks(self, block: nn.Module) -> Iterator[Any]:
        yield block.register_forward_pre_hook(self._before)
        yield block.register_forward_hook(self._after)

    def let_go(self) -> None:
        self._behind = None
        for block in list(self._gathered):
            self._release(block)

    def _gather(self, block: nn.Module) -> None:
        if block not in self._gathered:
            self._gathered[block] = self._ledger.take(_bytes(self._weights[block]), Category.GATHERED)

    def _release(self, block: nn.Module) -> None:
        if block in self._gathered:
            self._ledger.give(self._gathered.pop(block))
        for weight in self._weights[block]:
            if weight.requires_grad and weight.grad is not None:
                self._ledger.shrink(weight.grad, self._parallel.dp_shard_size)

    def _before(self, block: nn.Module, inputs: Any) -> None:
        self._gather(block)

    def _after(self, block: nn.Module, inputs: Any, output: Any) -> None:
        if block is self._behind:  # the forward pass is made once more for its backward pass, which follows
            return
        outputs = [one for one in _tensors(output) if one.requires_grad]
        if outputs and torch.is_grad_enabled():
            register_multi_grad_hook(outputs, lambda grad: self._backward(block), mode="any")
        if self._parallel.reshard_after_forward or not outputs:
            self._release(block)

    def _backward(self, block: nn.Module) -> None:
        before, self._behind = self._behind, block
        if before is None:  # the first of this backward pass
            Variable._execution_engine.queue_callback(self.let_go)  # at its end
        elif before is not block:
            self._release(before)
        self._gather(block)


def _weights(block: nn.Module) -> Iterator[Tensor]:
    """Parameters, and what quantisation packed them into (job/plan/quantised.py)."""
    yield from block.parameters()
    for module in block.modules():
        if isinstance(module, nn.Linear) and "weight" in module._buffers:
            yield module.weight


def _bytes(weights: Sequence[Tensor]) -> int:
    return sum(weight.nbytes for weight in weights)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for one in output:
            yield from _tensors(one)
