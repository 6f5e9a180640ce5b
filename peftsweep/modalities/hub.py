"""Data sets of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peftsweep.errors import DataError, Problem


@contextmanager
def hub_data_errors(rule: str, dataset: str, key: str, fix: str) -> Iterator[None]:
    """Within it, whatever the hub, the network or a file's format raises is a DataError that says what to do.

    rule: what must hold; key: the setting that asked for the data set; fix: the ways out.
    """
    try:
        yield
    except Exception as error:  # datasets, the hub's client and the network each raise their own
        raise DataError(Problem(f"{rule} ({error})", dataset, key, fix)) from error
