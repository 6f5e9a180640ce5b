"""Follows every storage that torch makes on the meta device: how large, for what, and when it is let go.

Nothing is computed and no memory is taken, so a training step of a model of billions is followed on a laptop in
seconds. torch's own MemTracker hooks modules, and fails on frozen ones.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Category(StrEnum):
    """What memory is for."""

    WEIGHTS = "weights"  # of the base model, and what a method adds and never trains
    ADAPTER = "adapter"  # trained parameters
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"  # state, and what a step of it needs meanwhile
    ACTIVATIONS = "activations"  # kept for, and made in, the backward pass
    GATHERED = "gathered blocks"  # of a model that several devices hold in parts: what is whole for the moment
    LOGITS = "logits and loss"  # whatever has the vocabulary as its last dimension


@dataclass(frozen=True)
class MemoryTrace:
    """What a piece of code allocated. events: (name, bytes), or (name, -1) where it is let go, in order.

    at_peak: bytes by category when most was allocated, the sum of which is peak_allocated_bytes.
    """

    events: tuple[tuple[int, int], ...]
    peak_allocated_bytes: int
    at_peak: dict[Category, int]


@dataclass
class _Entry:
    name: int
    size: int
    category: Category
    whole: int  # size before it shrank
    reference: weakref.ref[Any] | None = field(default=None, repr=False)


class Ledger(TorchDispatchMode):
    """Books storages while it is entered; questions about values, which a meta tensor can't answer, get an answer.

    vocabulary: size of the last dimension that tells logits; None where there are none.
    """

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        self._vocabulary = vocabulary
        self._entries: dict[int, _Entry] = {}  # by id of a storage that is alive
        self._events: list[tuple[int, int]] = []
        self._results: dict[Any, Any] = {}  # see _result
        self.category = Category.ACTIVATIONS  # what is made from now on is for this
        self.divided: dict[torch.Size, int] = {}  # shapes of weights of which an optimizer has a part of this many only
        self._now: dict[Category, int] = dict.fromkeys(Category, 0)
        self._now_bytes = self._peak_bytes = self._names = 0
        self._at_peak = dict(self._now)

    def trace(self) -> MemoryTrace:
        return MemoryTrace(tuple(self._events), self._peak_bytes, dict(self._at_peak))

    def book(self, tensors: Iterable[Tensor], category: Category, share: float = 1.0) -> None:
        """Tensors that are there already, or that turn out to be for something else than was thought. share: of a new
        one that takes memory here."""
        for tensor in tensors:
            if tensor.is_meta:
                self._book(tensor, category, share)
                entry = self._entries[id(tensor.untyped_storage())]
                self._now[entry.category] -= entry.size
                self._now[category] += entry.size
                entry.category = category

    def take(self, size: int, category: Category) -> int:
        """Memory that no tensor here stands for; answers what to give it back by."""
        entry = self._enter(size, category)
        self._entries[-entry.name] = entry
        return -entry.name

    def give(self, key: int) -> None:
        self._release(key)

    def shrink(self, tensor: Tensor, parts: int) -> None:
        """Of a tensor that was booked, one part of so many stays, once."""
        key = id(tensor.untyped_storage())
        entry = self._entries[key]
        if entry.size == entry.whole:
            self._release(key)
            smaller = self._enter(math.ceil(entry.size / parts), entry.category)
            self._entries[key] = replace(smaller, whole=entry.whole, reference=entry.reference)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = NotImplemented
        if func in ANSWERS and next((leaf.is_meta for leaf in _flat(args) if isinstance(leaf, Tensor)), True):
            out = ANSWERS[func](*args, **kwargs)
        if out is NotImplemented:
            out = self._result(func, args, kwargs)
        for leaf in _flat((out,)):
            if isinstance(leaf, Tensor) and leaf.is_meta and leaf.layout is torch.strided:
                is_logits = leaf.dim() > 1 and leaf.shape[-1] == self._vocabulary
                is_activation = self.category is Category.ACTIVATIONS
                self._book(leaf, Category.LOGITS if is_activation and is_logits else self.category)
                if func in WORKSPACES:
                    workspace = torch.empty(WORKSPACES[func](leaf, args[1]), dtype=torch.uint8, device="meta")
                    self._book(workspace, self.category)
        return out

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operation on the meta device gives. torch finds it out in Python, and blocks repeat each other: what
        was asked before, of tensors alike, is made at once."""
        key = None if func._schema.is_mutable else _question(func, args, kwargs)
        known = self._results.get(key)
        if known is not None:
            return _new(known) if isinstance(known, _Made) else tuple(map(_new, known))
        out = func(*args, **kwargs)
        if key is not None and key not in self._results:
            self._results[key] = _made_anew(out, args)
        return out

    def _book(self, tensor: Tensor, category: Category, share: float = 1.0) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._entries:
            return
        if category is Category.OPTIMIZER:
            share /= self.divided.get(tensor.shape, 1)
        entry = self._enter(math.ceil(storage.nbytes() * share), category)
        # A storage's Python object lives exactly as long as the storage itself, whoever holds it.
        entry.reference = weakref.ref(storage, lambda _: self._release(key))
        self._entries[key] = entry

    def _enter(self, size: int, category: Category) -> _Entry:
        self._names += 1
        entry = _Entry(self._names, size, category, size)
        self._events.append((entry.name, entry.size))
        self._now[category] += entry.size
        self._now_bytes += entry.size
        if self._now_bytes > self._peak_bytes:
            self._peak_bytes, self._at_peak = self._now_bytes, dict(self._now)
        return entry

    def _release(self, key: int) -> None:
        entry = self._entries.pop(key)
        self._events.append((entry.name, -1))
        self._now[entry.category] -= entry.size
        self._now_bytes -= entry.size


class _Made(NamedTuple):
    """A tensor with a storage of its own."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _new(made: _Made) -> Tensor:
    return torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device="meta")


def _flat(args: Iterable[Any]) -> Iterator[Any]:
    """An operation takes and gives values, and lists of them."""
    for one in args:
        if isinstance(one, list | tuple):
            yield from one
        else:
            yield one


def _question(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation with all that the shape of its result depends on; None where that is on the host, or can't be told
    apart."""
    key: list[Any] = [func, *(len(one) if isinstance(one, list | tuple) else None for one in args), *kwargs]
    for leaf in _flat((*args, *kwargs.values())):
        if not isinstance(leaf, Tensor):
            key += [type(leaf), leaf]
        elif leaf.is_meta and leaf.layout is torch.strided:
            key += [leaf.shape, leaf.stride(), leaf.dtype]
        else:
            return None
    try:
        hash(question := tuple(key))
    except TypeError:
        return None
    return question


def _made_anew(out: Any, args: Any) -> _Made | tuple[_Made, ...] | None:
    """None for anything but tensors of which each has a whole storage of its own."""
    tensors = out if isinstance(out, tuple) else (out,)
    taken = {id(leaf.untyped_storage()) for leaf in _flat(args) if isinstance(leaf, Tensor)}
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or not tensor.is_meta or tensor.layout is not torch.strided:
            return None
        storage = tensor.untyped_storage()
        is_whole = tensor.storage_offset() == 0 and not tensor.is_conj() and not tensor.is_neg()
        if id(storage) in taken or not is_whole:
            return None
        taken.add(id(storage))
    made = tuple(_Made(tuple(tensor.shape), tensor.stride(), tensor.dtype) for tensor in tensors)
    return made if isinstance(out, tuple) else made[0]


def _scalar(tensor: Tensor) -> Any:
    """No to questions (is anything infinite, is nothing padded?), one for numbers."""
    return False if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1


def _random(size: Sequence[int], **options: Any) -> Any:
    """A single number is drawn to decide by, as whether a layer is dropped: it is on the host, and decides for the
    layer."""
    return torch.full(size, 0.5, device="cpu") if math.prod(size) == 1 else NotImplemented


def _all_chosen(tensor: Tensor) -> Any:
    """As if every element were chosen: the most that can be."""
    return torch.empty((tensor.numel(), tensor.dim()), dtype=torch.int64, device="meta")


def _index(tensor: Tensor, indices: Sequence[Tensor | None]) -> Any:
    """tensor[mask] chooses every element that the mask has."""
    plain: list[Tensor | None] = []
    for index in indices:
        is_mask = index is not None and index.dtype in (torch.bool, torch.uint8)
        plain += _all_chosen(index).unbind(dim=1) if is_mask and index is not None else [index]
    return aten.index.Tensor(tensor, plain)


def _counts(tensor: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Any:
    return torch.empty(max(1, minlength), dtype=torch.int64 if weights is None else weights.dtype, device="meta")


def _copy_on_meta(tensor: Tensor, **options: Any) -> Any:
    """A copy to the host, of which there is none here."""
    return aten._to_copy.default(tensor, **options | {"device": tensor.device, "pin_memory": None})


def _block_diagonal(blocks: Sequence[Tensor]) -> Any:
    """One matrix, as CUDA makes it; on the meta device torch pads each block and joins them."""
    shape = sum(block.shape[0] for block in blocks), sum(block.shape[1] for block in blocks)
    return torch.empty(shape, dtype=blocks[0].dtype, device="meta")


# What is asked of values of meta tensors, or done otherwise than on CUDA -> the answer without values; NotImplemented:
# as torch does.
ANSWERS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _scalar,
    aten.nonzero.default: _all_chosen,
    aten._to_copy.default: _copy_on_meta,
    aten.index.Tensor: _index,
    aten.bincount.default: _counts,
    aten.equal.default: lambda one, other: False,
    aten.rand.default: _random,
    aten.block_diag.default: _block_diagonal,
}


def _fft_workspace(spectrum: Tensor, dims: Sequence[int]) -> int:
    """cuFFT's work area over several dimensions is no less than the data, says its documentation; short rows take
    none."""
    return spectrum.nbytes if len(dims) > 1 else 0


# What CUDA takes beside its result while it computes it -> bytes, from the result and the dimensions.
WORKSPACES: dict[Any, Callable[[Tensor, Sequence[int]], int]] = {aten._fft_c2c.default: _fft_workspace}
