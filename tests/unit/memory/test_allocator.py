"""The expected sizes follow from c10/cuda/CUDACachingAllocator.cpp, worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsweep.memory.allocator import MIB, CachingAllocator, is_expandable, peak_reserved


def allocated(*sizes: int, expandable: bool = False) -> CachingAllocator:
    """Blocks 0, 1, ... of these sizes."""
    allocator = CachingAllocator(expandable)
    for name, size in enumerate(sizes):
        allocator.allocate(name, size)
    return allocator


@pytest.mark.parametrize(
    ("size", "reserved_mib"),
    [
        (1, 2),
        (MIB, 2),  # the largest of the small
        (MIB + 1, 20),
        (10 * MIB - 512, 20),
        (10 * MIB, 10),  # from here on a segment of its own
        (10 * MIB + 1, 12),
        (31 * MIB, 32),
    ],
)
def test_a_request_reserves_a_segment_of_its_class(size: int, reserved_mib: int) -> None:
    assert allocated(size).reserved_bytes == reserved_mib * MIB


def test_an_empty_tensor_takes_nothing() -> None:
    allocator = allocated(0)
    allocator.free(0)
    assert allocator.peak_reserved_bytes == 0


def test_small_blocks_are_multiples_of_512_bytes() -> None:
    assert allocated(*[1] * 4096).reserved_bytes == 2 * MIB
    assert allocated(*[1] * 4097).reserved_bytes == 4 * MIB
    assert allocated(*[513] * 2048).reserved_bytes == 2 * MIB
    assert allocated(*[513] * 2049).reserved_bytes == 4 * MIB


def test_small_and_large_blocks_share_no_segment() -> None:
    assert allocated(2 * MIB, MIB).reserved_bytes == 22 * MIB


def test_requests_below_10_mib_share_a_segment_of_20() -> None:
    assert allocated(9 * MIB, 9 * MIB, 2 * MIB).reserved_bytes == 20 * MIB
    assert allocated(9 * MIB, 9 * MIB, 2 * MIB + 1).reserved_bytes == 40 * MIB


def test_a_rest_of_at_most_1_mib_stays_with_a_large_block() -> None:
    allocator = allocated(6 * MIB, 6 * MIB, 8 * MIB)
    allocator.free(1)
    allocator.allocate(3, 5 * MIB + MIB // 2)
    allocator.free(2)
    allocator.allocate(4, 8 * MIB + MIB // 4)  # would fit, if the last half had been cut off
    assert allocator.reserved_bytes == 40 * MIB


def test_a_freed_block_serves_the_next_request() -> None:
    allocator = allocated(32 * MIB)
    allocator.free(0)
    allocator.allocate(1, 30 * MIB)
    allocator.allocate(2, 2 * MIB)  # what was cut off
    assert allocator.reserved_bytes == 32 * MIB


def test_a_freed_block_that_is_too_small_serves_nobody() -> None:
    allocator = allocated(32 * MIB)
    allocator.free(0)
    allocator.allocate(1, 34 * MIB)
    assert allocator.reserved_bytes == 66 * MIB


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    allocator = allocated(64 * MIB, 32 * MIB)
    allocator.free(0)
    allocator.free(1)
    allocator.allocate(2, 32 * MIB)
    allocator.allocate(3, 64 * MIB)
    assert allocator.reserved_bytes == 96 * MIB


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1)])
def test_freed_neighbours_become_one_block(order: tuple[int, int, int]) -> None:
    allocator = allocated(6 * MIB, 6 * MIB, 6 * MIB)
    for name in order:
        allocator.free(name)
    allocator.allocate(3, 20 * MIB)
    assert allocator.reserved_bytes == 20 * MIB


def test_a_block_between_two_free_ones_keeps_them_apart() -> None:
    allocator = allocated(6 * MIB, 6 * MIB, 8 * MIB)
    allocator.free(0)
    allocator.free(2)
    allocator.allocate(3, 9 * MIB)
    assert allocator.reserved_bytes == 40 * MIB


def test_a_name_that_was_let_go_is_let_go_once() -> None:
    allocator = allocated(6 * MIB)
    allocator.free(0)
    allocator.free(0)
    allocator.allocate(1, 19 * MIB)
    allocator.allocate(2, 19 * MIB)
    assert allocator.reserved_bytes == 20 * MIB + 20 * MIB


def test_what_is_reserved_stays_reserved_and_the_peak_is_told() -> None:
    assert peak_reserved([(1, 32 * MIB), (1, -1), (2, 512)], expandable=False) == 34 * MIB
    assert peak_reserved([]) == 0


def test_a_segment_that_grows_is_reserved_by_the_page() -> None:
    assert allocated(1, expandable=True).reserved_bytes == 2 * MIB
    assert allocated(2 * MIB, expandable=True).reserved_bytes == 20 * MIB
    assert allocated(19 * MIB, 22 * MIB, expandable=True).reserved_bytes == 60 * MIB


def test_a_free_block_at_the_end_of_a_growing_segment_grows_by_what_lacks() -> None:
    allocator = allocated(32 * MIB, expandable=True)
    allocator.free(0)
    allocator.allocate(1, 44 * MIB)
    assert allocator.reserved_bytes == 60 * MIB


def test_the_end_of_a_growing_segment_is_the_last_that_is_taken() -> None:
    allocator = allocated(30 * MIB, 6 * MIB, expandable=True)  # 4 MiB are free at the end
    allocator.free(0)
    allocator.allocate(2, 3 * MIB)  # from the 30 in front
    allocator.allocate(3, 24 * MIB)
    allocator.allocate(4, 7 * MIB)  # what is left of the 30 is too small: the end grows
    assert allocator.reserved_bytes == 60 * MIB
    allocator.free(3)
    allocator.allocate(5, 27 * MIB)
    assert allocator.reserved_bytes == 60 * MIB


def test_of_a_growing_segment_each_rest_is_cut_off() -> None:
    allocator = allocated(20 * MIB, 20 * MIB, expandable=True)
    allocator.free(0)
    allocator.allocate(2, 19 * MIB + MIB // 2)
    allocator.allocate(3, 20 * MIB)
    assert allocator.reserved_bytes == 60 * MIB


@pytest.mark.parametrize(
    ("chosen", "expandable"),
    [
        ({}, True),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:True, max_split_size_mb:128"}, True),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}, False),
        (
            {"PYTORCH_ALLOC_CONF": "expandable_segments:False", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
            False,
        ),
    ],
)
def test_segments_grow_unless_the_user_set_the_allocator_up(
    chosen: dict[str, str], expandable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert is_expandable() is expandable


SIZES = st.one_of(st.integers(1, 4096), st.integers(MIB // 2, 2 * MIB), st.integers(8 * MIB, 40 * MIB))
HISTORIES = st.lists(st.tuples(SIZES, st.integers(0, 5)), min_size=1, max_size=60)


@given(HISTORIES, st.booleans())
def test_live_bytes_always_fit_and_nothing_is_lost(history: list[tuple[int, int]], expandable: bool) -> None:
    """After each request every `frees`-th living block is let go, and all of them in the end."""
    allocator, living = CachingAllocator(expandable), {}
    for name, (size, frees) in enumerate(history):
        allocator.allocate(name, size)
        living[name] = size
        assert sum(living.values()) <= allocator.reserved_bytes
        for freed in list(living)[:: frees + 1] if frees else []:
            allocator.free(freed)
            del living[freed]
    for name in living:
        allocator.free(name)
    assert bytes_of_whole_free_segments(allocator) == allocator.reserved_bytes


def bytes_of_whole_free_segments(allocator: CachingAllocator) -> int:
    """Fails unless each free block is all that there is of its segment."""
    blocks = [block for pool in allocator._pools.values() for block in pool.blocks]
    assert all(block.before is block.after is None and block.offset == 0 for block in blocks)
    assert len({block.segment for block in blocks}) == len(blocks)
    return sum(block.size for block in blocks)
