"""The order in which training meets its rows: seeded, every row once an epoch, rows of like length together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch


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
