from collections import Counter
from itertools import chain, islice

import pytest

from peftsweep.modalities.order import batch_order

LENGTHS = [7, 3, 9, 1, 5, 8, 2, 6, 4, 10]


def batches(count: int, *, batch_size: int = 3, bucket_batches: int = 2, seed: int = 0) -> list[list[int]]:
    return list(islice(batch_order(LENGTHS, batch_size, bucket_batches, seed), count))


@pytest.mark.parametrize("batch_size", [1, 3, 10])
@pytest.mark.parametrize("bucket_batches", [1, 2, 50])
def test_after_any_bucket_no_row_is_more_than_one_epoch_ahead(batch_size: int, bucket_batches: int) -> None:
    in_bucket = min(bucket_batches, len(LENGTHS) // batch_size)
    for buckets in (1, 2, 5, 11):
        order = batches(buckets * in_bucket, batch_size=batch_size, bucket_batches=bucket_batches)
        seen = Counter(chain(*order))
        assert max(seen.values()) - min(seen[row] for row in range(len(LENGTHS))) <= 1


def test_batches_are_full_across_the_end_of_an_epoch() -> None:
    assert {len(batch) for batch in batches(40)} == {3}


def test_a_batch_larger_than_the_data_repeats_rows_evenly() -> None:
    assert max(Counter(batches(1, batch_size=25)[0]).values()) == 3


def test_a_bucket_wider_than_an_epoch_does_not_fill_a_batch_with_copies() -> None:
    copies = [len(batch) - len(set(batch)) for batch in batches(200, bucket_batches=1000)]
    assert max(copies) <= 1  # the two epochs that meet in a bucket may share a row
    assert sum(copies) < 60


def test_rows_of_a_batch_are_alike_in_length() -> None:
    spans = [
        max(lengths) - min(lengths) for lengths in ([LENGTHS[i] for i in b] for b in batches(30, bucket_batches=3))
    ]
    loose = [
        max(lengths) - min(lengths) for lengths in ([LENGTHS[i] for i in b] for b in batches(30, bucket_batches=1))
    ]
    assert sum(spans) < 0.7 * sum(loose)


def test_long_batches_do_not_always_come_first() -> None:
    order = batches(60, bucket_batches=3)
    first_is_longest = [
        sum(LENGTHS[row] for row in order[start])
        == max(sum(LENGTHS[row] for row in b) for b in order[start : start + 3])
        for start in range(0, 60, 3)
    ]
    assert 0 < sum(first_is_longest) < 20


def test_the_order_repeats_with_its_seed_alone() -> None:
    assert batches(20, seed=1) == batches(20, seed=1) != batches(20, seed=2)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        next(batch_order([], 1, 1, 0))
