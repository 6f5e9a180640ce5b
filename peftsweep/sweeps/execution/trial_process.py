"""A worker's hold on the process that runs its trials: start it, send a trial, follow it, end it, replace it.

The messages that the two send each other are plain dataclasses.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from peftsweep.sweeps.execution.outcomes import with_result
from peftsweep.sweeps.protocol.trials import Ending, Outcome

TRIAL_SERVER = "peftsweep.sweeps.execution.trial_server"
POLL_SECONDS = 0.2
END_SECONDS = 15.0  # what an interrupted trial gets to write its result and close its MLflow run


@dataclass(frozen=True)
class TrialRequest:
    """One trial to run.

    overrides: all settings but the searched ones; report: the metric that is reported after validations, and may end
    the trial; params: the searched settings; proposal: where they are None, the arguments of `search.propose`.
    """

    overrides: tuple[str, ...]
    folder: str
    report: str
    params: dict[str, Any] | None = None
    proposal: dict[str, Any] | None = None
    config_dir: str | None = None
    tokens: int | None = None  # what the trial may spend
    seconds: float | None = None
    number: int = 0  # of the trial in its study


@dataclass(frozen=True)
class Proposed:
    params: dict[str, Any]


@dataclass(frozen=True)
class Begun:
    mlflow_run_id: str | None


@dataclass(frozen=True)
class Alive:
    """No step was done, but something was: an evaluation goes on. doing: in words."""

    doing: str


@dataclass(frozen=True)
class Stepped:
    step: int
    tokens: int


@dataclass(frozen=True)
class Reported:
    """Answered with True (go on) or False (prune)."""

    step: int
    value: float


class ProcessGoneError(Exception):
    """The process closed its end: it died."""


class TrialProcess:
    """One process at a time, started when first needed and kept from trial to trial, warm."""

    def __init__(self, environment: Mapping[str, str], log: IO[bytes] | int, stall_seconds: float) -> None:
        self._environment, self._log, self._stall_seconds = dict(environment), log, stall_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._was_interrupted = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def run(self, request: TrialRequest, on_message: Callable[[Any], Any], is_stopped: Callable[[], bool]) -> Outcome:
        """Run one trial to its end. on_message: called with each message; what it returns other than None is sent back.

        is_stopped: asked a few times a second; True interrupts the trial. A process that dies, or sends nothing for
        stall_seconds, is an outcome too: CRASHED. It is replaced after every ending that may have harmed it.
        """
        started, self._was_interrupted = time.monotonic(), False
        try:
            connection = self._start()
            _on_line(connection.send, request)
            outcome = self._follow(connection, request, on_message, is_stopped)
        except ProcessGoneError:
            # One that was still importing when it was interrupted can only die.
            ending = Ending.INTERRUPTED if self._was_interrupted else Ending.CRASHED
            outcome = Outcome(ending, f"the trial's process died ({self._how_it_ended()})", request.folder)
        if outcome.ending in (Ending.CRASHED, Ending.OOM, Ending.INTERRUPTED):
            self.close()
        if outcome.seconds:
            return outcome
        return replace(with_result(outcome, Path(request.folder)), seconds=time.monotonic() - started)

    def _follow(
        self,
        connection: Connection,
        request: TrialRequest,
        on_message: Callable[[Any], Any],
        is_stopped: Callable[[], bool],
    ) -> Outcome:
        last_message_seconds, interrupted_seconds = time.monotonic(), None
        while True:
            if _on_line(connection.poll, POLL_SECONDS):
                last_message_seconds = time.monotonic()
                message = _on_line(connection.recv)
                if isinstance(message, Outcome):
                    return message
                answer = on_message(message)
                if answer is not None:
                    _on_line(connection.send, answer)
            now = time.monotonic()
            if interrupted_seconds is None and is_stopped():
                interrupted_seconds, self._was_interrupted = now, True
                if self._process is not None and self._process.poll() is None:
                    self._process.send_signal(signal.SIGTERM)
            if interrupted_seconds is not None and now - interrupted_seconds > END_SECONDS:
                return Outcome(Ending.INTERRUPTED, "stopped, and killed because it did not end", request.folder)
            if now - last_message_seconds > self._stall_seconds:
                cause = f"the trial did nothing for {self._stall_seconds:.0f} s and was killed"
                return Outcome(Ending.CRASHED, cause, request.folder)

    def _start(self) -> Connection:
        if self._process is not None and self._process.poll() is None and self._connection is not None:
            return self._connection
        self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", TRIAL_SERVER, str(theirs.fileno()), str(os.getpid())],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C in the terminal is for the sweep to pass on, in its own way
            )
        self._connection = Connection(ours.detach())
        return self._connection

    def _how_it_ended(self) -> str:
        if self._process is None:
            return "it did not start"
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """End the process and what it started (data loaders, compilers)."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def _on_line(call: Callable[..., Any], *message: Any) -> Any:
    """Only what fails on the line to the process is its fault; the storage has errors of its own."""
    try:
        return call(*message)
    except (EOFError, OSError) as error:
        raise ProcessGoneError from error
