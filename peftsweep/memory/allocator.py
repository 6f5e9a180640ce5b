"""What PyTorch's caching allocator would reserve on a CUDA device for a history of allocations.

A job needs what is reserved, not what is allocated: blocks are rounded up, small ones share segments, and a freed
block serves the next request only if it is large enough. The rules are those of c10/cuda/CUDACachingAllocator.cpp for
one stream, with segments of fixed size or, as jobs have them, with one for each pool that grows at its end.
"""

from __future__ import annotations

import bisect
import os
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
GROWTH_BYTES = {True: SMALL_SEGMENT_BYTES, False: LARGE_SEGMENT_BYTES}  # of an expandable segment; True: small blocks
SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch's own environment variables, the stronger first
EXPANDABLE = "expandable_segments:True"


def is_expandable() -> bool:
    """Whether a job's segments grow, which leaves hardly any gaps: yes, unless the user has set up torch's allocator
    otherwise."""
    chosen = next((os.environ[name] for name in SETTINGS if os.environ.get(name)), EXPANDABLE)
    return EXPANDABLE in chosen.replace(" ", "")


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
    """Free blocks, smallest first. last: the block, free or not, at the end of the segment that grows."""

    blocks: list[_Block] = field(default_factory=list)
    last: _Block | None = None

    def add(self, block: _Block) -> None:
        bisect.insort(self.blocks, block, key=_BEST_FIT)
        block.is_free = True

    def take(self, least: tuple[int, int, int]) -> _Block | None:
        """The first block from this place in the order on; the one that can grow counts as the largest."""
        place = bisect.bisect_left(self.blocks, least, key=_BEST_FIT)
        if place == len(self.blocks):
            return None
        if self.blocks[place] is self.last and place + 1 < len(self.blocks):
            place += 1
        block = self.blocks.pop(place)
        block.is_free = False
        return block

    def remove(self, block: _Block) -> None:
        del self.blocks[bisect.bisect_left(self.blocks, _BEST_FIT(block), key=_BEST_FIT)]
        block.is_free = False

    def split(self, block: _Block, size: int) -> _Block:
        """Cut a block down to size; answer the rest."""
        rest = _Block(block.segment, block.offset + size, block.size - size, block.is_small, True, block, block.after)
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        if self.last is block:
            self.last = rest
        return rest

    def join(self, first: _Block, second: _Block) -> _Block:
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        if self.last is second:
            self.last = first
        return first


class CachingAllocator:
    """A device's memory as `torch.cuda.memory_reserved` and `max_memory_reserved` tell it, in bytes."""

    def __init__(self, expandable: bool) -> None:
        self._expandable = expandable
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
        make = self._grow if self._expandable else self._new_segment
        block = pool.take((size, -1, -1)) or make(size)
        rest = block.size - size
        if rest >= SMALLEST_BLOCK_BYTES if block.is_small or self._expandable else rest > SMALL_BYTES:
            pool.add(pool.split(block, size))
        self._live[name] = block

    def free(self, name: int) -> None:
        """Keep the block for later requests, joined with free neighbours."""
        block = self._live.pop(name, None)
        if block is None:
            return
        pool = self._pools[block.is_small]
        if block.after is not None and block.after.is_free:
            pool.remove(block.after)
            pool.join(block, block.after)
        if block.before is not None and block.before.is_free:
            pool.remove(block.before)
            block = pool.join(block.before, block)
        pool.add(block)

    def _new_segment(self, size: int) -> _Block:
        is_small = size <= SMALL_BYTES
        if is_small:
            whole = SMALL_SEGMENT_BYTES
        else:
            whole = LARGE_SEGMENT_BYTES if size < LARGE_ALONE_BYTES else _round_up(size, ROUND_SEGMENT_BYTES)
        self._segments += 1
        self._reserve(whole)
        return _Block(self._segments, 0, whole, is_small, is_free=False)

    def _grow(self, size: int) -> _Block:
        """A block at the end of the pool's one segment: what is free there, and as many pages as lack."""
        is_small = size <= SMALL_BYTES
        pool = self._pools[is_small]
        block = pool.last
        if block is not None and block.is_free:
            pool.remove(block)
        else:
            offset = 0 if block is None else block.offset + block.size
            block = _Block(int(is_small), offset, 0, is_small, is_free=False, before=block)
            if block.before is not None:
                block.before.after = block
            pool.last = block
        pages = _round_up(size - block.size, GROWTH_BYTES[is_small])
        self._reserve(pages)
        block.size += pages
        return block

    def _reserve(self, size: int) -> None:
        self.reserved_bytes += size
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)


def peak_reserved(events: Iterable[tuple[int, int]], expandable: bool | None = None) -> int:
    """Bytes that a history makes the allocator reserve at most. events: (name, bytes), or (name, -1) where it is let
    go. expandable: whether segments grow; None: as in a job."""
    allocator = CachingAllocator(is_expandable() if expandable is None else expandable)
    for name, size in events:
        if size < 0:
            allocator.free(name)
        else:
            allocator.allocate(name, size)
    return allocator.peak_reserved_bytes


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
