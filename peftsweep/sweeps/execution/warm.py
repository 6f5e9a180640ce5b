"""A worker's hold on its child: start it, hand it a trial, follow it, end it, replace it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from peftsweep.sweeps.execution.child import with_result
from peftsweep.sweeps.execution.messages import Request
from peftsweep.sweeps.execution.tickets import Ending, Outcome

POLL_SECONDS = 0.2
END_SECONDS = 15.0  # what an interrupted trial gets to write its result and close its MLflow run


class ChildGoneError(Exception):
    """The child closed its end: it died."""


class WarmChild:
    """One child process at a time, started when first needed."""

    def __init__(self, environment: Mapping[str, str], log: IO[bytes] | int, stall_seconds: float) -> None:
        self._environment, self._log, self._stall_seconds = dict(environment), log, stall_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._is_told_to_end = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def run(
        self,
        request: Request,
        on_message: Callable[[Any], Any],
        is_stopped: Callable[[], bool],
    ) -> Outcome:
        """Run one trial to its end. on_message: told each message; what it answers other than None is sent back.

        is_stopped: asked a few times a second; True interrupts the trial. A child that dies, or says nothing for
        stall_seconds, is an outcome too: CRASHED. The child is replaced after every ending that may have harmed it.
        """
        started, self._is_told_to_end = time.monotonic(), False
        try:
            connection = self._start()
            _spoken(connection.send, request)
            outcome = self._follow(connection, request, on_message, is_stopped)
        except ChildGoneError:
            # One that was still importing when it was told to end knows no better way than to die.
            ending = Ending.INTERRUPTED if self._is_told_to_end else Ending.CRASHED
            outcome = Outcome(ending, f"the trial's process died ({self._how_it_ended()})", request.folder)
        if outcome.ending in (Ending.CRASHED, Ending.OOM, Ending.INTERRUPTED):
            self.close()
        if outcome.seconds:
            return outcome
        return _timed(with_result(outcome, Path(request.folder)), time.monotonic() - started)

    def _follow(
        self,
        connection: Connection,
        request: Request,
        on_message: Callable[[Any], Any],
        is_stopped: Callable[[], bool],
    ) -> Outcome:
        heard_seconds, interrupted_seconds = time.monotonic(), None
        while True:
            if _spoken(connection.poll, POLL_SECONDS):
                heard_seconds = time.monotonic()
                message = _spoken(connection.recv)
                if isinstance(message, Outcome):
                    return message
                answer = on_message(message)
                if answer is not None:
                    _spoken(connection.send, answer)
            now = time.monotonic()
            if interrupted_seconds is None and is_stopped():
                interrupted_seconds, self._is_told_to_end = now, True
                self._signal(signal.SIGTERM)
            if interrupted_seconds is not None and now - interrupted_seconds > END_SECONDS:
                return Outcome(Ending.INTERRUPTED, "stopped, and killed because it did not end", request.folder)
            if now - heard_seconds > self._stall_seconds:
                cause = f"the trial did nothing for {self._stall_seconds:.0f} s and was killed"
                return Outcome(Ending.CRASHED, cause, request.folder)

    def _start(self) -> Connection:
        if self._process is not None and self._process.poll() is None and self._connection is not None:
            return self._connection
        self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "peftsweep.sweeps.execution.child", str(theirs.fileno()), str(os.getpid())],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C in the terminal is for the sweep to pass on, in its own way
            )
        self._connection = Connection(ours.detach())
        return self._connection

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _how_it_ended(self) -> str:
        if self._process is None:
            return "it did not start"
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """End the child, by force where it does not leave by itself."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None and self._process.poll() is None:
            self._kill_group()
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _kill_group(self) -> None:
        """The child and what it started (data loaders, compilers)."""
        assert self._process is not None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _spoken(call: Callable[..., Any], *message: Any) -> Any:
    """Only what fails on the line to the child is the child's fault; the storage has errors of its own."""
    try:
        return call(*message)
    except (EOFError, OSError) as error:
        raise ChildGoneError from error


def _timed(outcome: Outcome, seconds: float) -> Outcome:
    from dataclasses import replace

    return replace(outcome, seconds=seconds)
