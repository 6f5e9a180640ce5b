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

STOP_FILE = "stop"


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
        (folder / STOP_FILE).write_text(stop.name, encoding="utf-8")


@contextmanager
def on_signals(tell: Callable[[Stop], None]) -> Iterator[None]:
    """Ctrl-C tells FINISH, a second one NOW; SIGTERM, SIGHUP and SIGUSR2 (a scheduler's last warning) tell NOW.

    Nothing is raised, so that whoever waits in a launcher goes on waiting for its workers to end well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = Stop.NO

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal told
        is_first = number == signal.SIGINT and told is Stop.NO
        told = Stop.FINISH if is_first else Stop.NOW
        tell(told)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32":
        numbers += [signal.SIGHUP, signal.SIGUSR2]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
