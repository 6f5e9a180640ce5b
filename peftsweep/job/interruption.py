"""Orders to stop: they come between two steps, never in the middle of one, so that the job can be continued."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from peftsweep.errors import Interrupted

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Interruption:
    """Turns SIGTERM and Ctrl-C into Interrupted."""

    def __init__(self) -> None:
        self.order = ""  # that came, in words
        self._is_held_back = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, the first order raises Interrupted: at once, or at the end of an `undivided` part. Of more, SIGTERM
        does nothing and Ctrl-C raises KeyboardInterrupt at once. Only the main thread may set handlers; others go on
        as before. What is ignored (Ctrl-C in the background) stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _NAMES}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def undivided(self) -> Iterator[None]:
        """What is inside is done whole, unless it raises."""
        is_inner, self._is_held_back = self._is_held_back, True
        try:
            yield
        finally:
            self._is_held_back = is_inner
        if self.order and not is_inner:
            raise Interrupted(self.order)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.order = f"the job was interrupted by {_NAMES[signal.Signals(number)]}"
        if not self._is_held_back:
            raise Interrupted(self.order)
