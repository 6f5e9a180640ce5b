"""What another rank of a job than the first one does: the whole job, with its share of the rows, on its own device, in
a folder that is thrown away.

Started as `python -m peftsweep.job.other_rank <descriptor> <parent>`, or by a launcher as the first rank is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from peftsweep.config.schema import JobConfig
from peftsweep.errors import OutOfMemoryError
from peftsweep.job.device import choose_device
from peftsweep.job.display import Display
from peftsweep.job.ranks import HOST, LastWords, Order, die_with, joined_as_launched
from peftsweep.job.run import run_job
from peftsweep.ranks import world


def main(descriptor: int, parent: int) -> None:
    """Do the job of another rank; its process ends with the first one's."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is for the first rank to follow
    connection = Connection(descriptor)
    order: Order = connection.recv()
    os.environ["LOCAL_RANK"] = str(order.rank)
    try:
        store = world.meeting_point(HOST, order.port, order.size, is_first=False)
        with world.joined(order.rank, order.size, store, choose_device(order.job.device)):
            _follow(order.job)
    except BaseException as error:
        with contextlib.suppress(OSError):
            connection.send(LastWords(str(error) or type(error).__name__, isinstance(error, OutOfMemoryError)))
        raise


def follow_launched(config: JobConfig) -> None:
    """Do the part of another rank than the first one, in a process that a launcher started. It shares the terminal
    with the first one, and says nothing there but what ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _silent(), joined_as_launched(choose_device(config.device)):
        _follow(config)


def _follow(config: JobConfig) -> None:
    """Do a job and leave nothing of it."""
    quiet = replace(config, tracking=replace(config.tracking, enabled=False), plan=False, fit=False)
    with tempfile.TemporaryDirectory() as folder:
        run_job(quiet, Path(folder), display=Display())


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, this process writes nothing to its terminal, whoever writes."""
    kept = {number: os.dup(number) for number in (1, 2)}
    with Path(os.devnull).open("wb") as nowhere:
        for number in kept:
            os.dup2(nowhere.fileno(), number)
        try:
            yield
        finally:
            for number, before in kept.items():
                os.dup2(before, number)
                os.close(before)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
