"""Which rows training meets together: in a seeded order, every row once an epoch, rows of like length in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor


def batch_order(lengths: Sequence[int], batch_size: int, bucket_batches: int, seed: int) -> Iterator[list[int]]:
    """Endless lists of `batch_size` row numbers.

    Rows are shuffled anew each epoch, and epochs follow each other without a seam, so that no row is dropped or
    repeated at the end of one. `bucket_batches` batches at a time are sorted by length and cut, which keeps padding
    small; their order within the bucket is shuffled again, so that length does not follow the learning rate. A bucket
    holds an epoch at most: over several, sorting would fill a batch with copies of one row.
    """
    if not lengths:
        raise ValueError("batches need at least one row")
    generator = torch.Generator().manual_seed(seed)
    epochs = iter(lambda: torch.randperm(len(lengths), generator=generator).tolist(), None)
    rows = chain.from_iterable(epochs)
    bucket_batches = min(bucket_batches, max(1, len(lengths) // batch_size))
    while True:
        bucket = [next(rows) for _ in range(batch_size * bucket_batches)]
        bucket.sort(key=lambda row: -lengths[row])
        for position in torch.randperm(bucket_batches, generator=generator).tolist():
            yield bucket[position * batch_size : (position + 1) * batch_size]


def split_rows(lengths: Sequence[int], max_tokens: float) -> list[list[int]]:
    """Numbers of rows of these lengths, in parts of at most so many tokens, padding counted, and of one row at least:
    the longest first, so that rows of like length meet."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    parts: list[list[int]] = []
    while order:
        count = int(min(len(order), max(1, max_tokens // lengths[order[0]])))
        parts.append(order[:count])
        order = order[count:]
    return parts


def lengths_of(batch: Mapping[str, Tensor]) -> list[int]:
    """Tokens of each row of a padded batch, padding not counted."""
    return [int(length) for length in batch["attention_mask"].sum(dim=1)]


def rows_of(batch: Mapping[str, Tensor], which: Sequence[int]) -> dict[str, Tensor]:
    """Some rows of a batch that is padded on the right, as wide as the longest of them."""
    rows, width = list(which), max(lengths_of(batch)[row] for row in which)
    return {key: tensor[rows, :width] if tensor.dim() > 1 else tensor[rows] for key, tensor in batch.items()}
