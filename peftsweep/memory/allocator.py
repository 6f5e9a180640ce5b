"""What PyTorch's caching allocator would reserve on a CUDA device for a history of allocations.

A job needs what is reserved, not what is allocated: blocks are rounded up, small ones share segments, and a freed
block serves the next request only if it is large enough. The rules are those of c10/cuda/CUDACachingAllocator.cpp with
its default settings (no expandable segments), for one stream.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter

MIB = 2**20
SMALLEST_BLOCK_BYTES = 512  # every request is rounded up to a multiple of it
SMALL_BYTES = MIB  # requests up to this size are served from the pool of small blocks
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB  # shared by requests below LARGE_ALONE_BYTES
LARGE_ALONE_BYTES = 10 * MIB  # requests from this size get a segment of their own
ROUND_SEGMENT_BYTES = 2 * MIB


@dataclass(eq=False, slots=True)
class _Block:
    """A piece of a segment, with its neighbours there."""

    segment: int
    offset: int
    size: int
    is_small: bool
    is_free: bool = True
    before: _Block | None = None
    after: _Block | None = None


_BEST_FIT = attrgetter("size", "segment", "offset")  # the smallest block that is large enough, at the lowest address


@dataclass
class _Pool:
    """Free blocks, smallest first."""

    blocks: list[_Block] = field(default_factory=list)

    def add(self, block: _Block) -> None:
        bisect.insort(self.blocks, block, key=_BEST_FIT)
        block.is_free = True

    def take(self, least: tuple[int, int, int]) -> _Block | None:
        """The first block from this place in the order on."""
        place = bisect.bisect_left(self.blocks, least, key=_BEST_FIT)
        if place == len(self.blocks):
            return None
        block = self.blocks.pop(place)
        block.is_free = False
        return block


class CachingAllocator:
    """A device's memory as `torch.cuda.memory_reserved` and `max_memory_reserved` tell it, in bytes."""

    def __init__(self) -> None:
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0
        self._pools = {True: _Pool(), False: _Pool()}
        self._live: dict[int, _Block] = {}
        self._segments = 0

    def allocate(self, name: int, size_bytes: int) -> None:
        """name: what `free` is told. An empty tensor takes nothing."""
        if size_bytes == 0:
            return
        size = _round_up(size_bytes, SMALLEST_BLOCK_BYTES)
        pool = self._pools[size <= SMALL_BYTES]
        block = pool.take((size, -1, -1)) or self._new_segment(size)
        rest = block.size - size
        if rest >= SMALLEST_BLOCK_BYTES if block.is_small else rest > SMALL_BYTES:
            pool.add(_split(block, size))
        self._live[name] = block

    def free(self, name: int) -> None:
        """Keep the block for later requests, joined with free neighbours."""
        block = self._live.pop(name, None)
        if block is None:
            return
        pool = self._pools[block.is_small]
        if block.after is not None and block.after.is_free:
            pool.take(_BEST_FIT(block.after))
            _join(block, block.after)
        if block.before is not None and block.before.is_free:
            pool.take(_BEST_FIT(block.before))
            block = _join(block.before, block)
        pool.add(block)

    def _new_segment(self, size: int) -> _Block:
        is_small = size <= SMALL_BYTES
        if is_small:
            whole = SMALL_SEGMENT_BYTES
        else:
            whole = LARGE_SEGMENT_BYTES if size < LARGE_ALONE_BYTES else _round_up(size, ROUND_SEGMENT_BYTES)
        self._segments += 1
        self.reserved_bytes += whole
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return _Block(self._segments, 0, whole, is_small, is_free=False)


def peak_reserved(events: Iterable[tuple[int, int]]) -> int:
    """Bytes that a history makes the allocator reserve at most. events: (name, bytes), or (name, -1) where it is let
    go."""
    allocator = CachingAllocator()
    for name, size in events:
        if size < 0:
            allocator.free(name)
        else:
            allocator.allocate(name, size)
    return allocator.peak_reserved_bytes


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _split(block: _Block, size: int) -> _Block:
    """Cut a block down to size; answer the rest."""
    rest = _Block(block.segment, block.offset + size, block.size - size, block.is_small, True, block, block.after)
    if block.after is not None:
        block.after.before = rest
    block.after, block.size = rest, size
    return rest


def _join(first: _Block, second: _Block) -> _Block:
    first.size += second.size
    first.after = second.after
    if second.after is not None:
        second.after.before = first
    return first
