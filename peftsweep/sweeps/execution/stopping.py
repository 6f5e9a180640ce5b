"""How a sweep is stopped: first to finish what runs, then at once. A file in its folder reaches every worker."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType

from peftsweep.records.files import write_whole

STOP_FILE = "stop"
_handlers: list[Callable[[int, FrameType | None], None]] = []  # of those who listen now, the innermost last


class Stop(IntEnum):
    """NO: go on; FINISH: start no further trial; NOW: end what runs, to be run again later."""

    NO = 0
    FINISH = 1
    NOW = 2


def read_stop(folder: Path) -> Stop:
    try:
        return Stop[(folder / STOP_FILE).read_text(encoding="utf-8").strip()]
    except (OSError, KeyError):
        return Stop.NO


def write_stop(folder: Path, stop: Stop) -> None:
    """NO takes an earlier order back."""
    if stop is Stop.NO:
        (folder / STOP_FILE).unlink(missing_ok=True)
    else:
        write_whole(folder / STOP_FILE, stop.name)  # half a file would read as no order


@contextmanager
def on_signals(order: Callable[[Stop], None]) -> Iterator[None]:
    """Ctrl-C orders FINISH, a second one NOW; SIGTERM, SIGHUP and SIGUSR2 (a scheduler's last warning) order NOW.

    Nothing is raised, so that whoever waits in a launcher goes on waiting for its workers to end well. Who listens
    already, such as the controller of a worker in its own process, is called too. Under nohup a hang-up stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = Stop.NO
    outer = _handlers[-1] if _handlers else None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        is_first = number == signal.SIGINT and last is Stop.NO
        last = Stop.FINISH if is_first else Stop.NOW
        order(last)
        if outer is not None:
            outer(number, frame)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32":
        numbers.append(signal.SIGUSR2)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    _handlers.append(handle)
    try:
        yield
    finally:
        _handlers.remove(handle)
        for number, handler in before.items():
            signal.signal(number, handler)
