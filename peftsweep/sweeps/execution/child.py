"""The warm process that runs trials one after another: it keeps the frozen base model and the tokenised data.

Started by a worker as `python -m peftsweep.sweeps.execution.child <descriptor> <worker>`. Over a socket a `Request`
comes in, messages go out, an `Outcome` ends each trial. Whatever a trial does to this process, the worker outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from peftsweep.errors import (
    ConfigError,
    DataError,
    Interrupted,
    MethodError,
    ModelError,
    NonFiniteLossError,
    OutOfMemoryError,
    PeftsweepError,
    Pruned,
)
from peftsweep.job.display import Display
from peftsweep.records.results import JobResult, Status, load_result
from peftsweep.records.space import as_overrides
from peftsweep.sweeps.execution.messages import Alive, Begun, Proposed, Reported, Request, Stepped
from peftsweep.sweeps.execution.tickets import Ending, Outcome

STEP_MESSAGE_SECONDS = 0.5  # a step is told at most this often
ALIVE_MESSAGE_SECONDS = 5.0
ORPHAN_CHECK_SECONDS = 1.0
OUTCOME_FILE = "outcome.json"  # beside result.json: what the worker is told, should nobody hear it
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
CODE_KEYS = ("commit", "dirty", "torch", "transformers", "peft", "peftsweep")


def main(descriptor: int, worker: int) -> None:
    """Serve requests until the worker, a process id, closes its end."""
    _end_with(worker)
    connection = Connection(descriptor)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        connection.send(serve(request, connection))


def serve(request: Request, connection: Connection) -> Outcome:
    """Run one trial and answer how it ended; raises nothing that belongs to the trial."""
    started = time.monotonic()
    ending, cause = Ending.FINISHED, None
    try:
        _run(request, connection, started)
    except PeftsweepError as error:
        ending, cause = _ending_of(error), str(error)
    except KeyboardInterrupt:
        ending, cause = Ending.INTERRUPTED, "interrupted by Ctrl-C"
    except (HydraException, OmegaConfBaseException) as error:
        ending, cause = Ending.REFUSED, str(error)
    except Exception as error:
        ending, cause = Ending.CRASHED, f"{type(error).__name__}: {error}"
    outcome = Outcome(ending, cause, request.folder, seconds=time.monotonic() - started)
    outcome = with_result(outcome, Path(request.folder))
    with contextlib.suppress(OSError):  # the disk is full: the worker hears it anyway
        (Path(request.folder) / OUTCOME_FILE).write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    return outcome


def outcome_left_behind(folder: Path) -> Outcome | None:
    """How a trial ended that nobody heard the end of, if it got that far."""
    try:
        return Outcome(**json.loads((folder / OUTCOME_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    try:
        result = load_result(folder)
    except DataError:
        return None
    endings = {Status.OK: Ending.FINISHED, Status.OOM: Ending.OOM}  # a pruned job may have ended on its budget
    seconds = result.metrics.get("time/job_seconds", 0.0)
    ending = endings.get(result.status, Ending.CRASHED)
    return with_result(Outcome(ending, result.cause, str(folder), seconds=seconds), folder)


def with_result(outcome: Outcome, folder: Path) -> Outcome:
    """The outcome, with what the job's result.json says, if there is one that can be read."""
    try:
        result = load_result(folder)
    except DataError:
        return outcome
    return replace(
        outcome,
        mlflow_run_id=result.mlflow_run_id,
        metrics=result.metrics,
        intervals=result.intervals,
        data={info["split"]: info["digest"] for info in result.datasets},
        code=code_of(result),
        tokens=int(result.metrics.get("train/tokens", 0)),
        steps=result.steps,
    )


def code_of(result: JobResult) -> str:
    """Two trials of a study compare only where this is equal."""
    return " ".join(f"{key}={result.environment[key]}" for key in CODE_KEYS if key in result.environment)


def _ending_of(error: PeftsweepError) -> Ending:
    if isinstance(error, BudgetSpent):
        return Ending.SPENT
    endings = {
        Pruned: Ending.PRUNED,
        Interrupted: Ending.INTERRUPTED,
        OutOfMemoryError: Ending.OOM,
        NonFiniteLossError: Ending.DIVERGED,
    }
    endings |= dict.fromkeys((ConfigError, DataError, MethodError, ModelError), Ending.REFUSED)
    return next((ending for kind, ending in endings.items() if isinstance(error, kind)), Ending.CRASHED)


class _TellingDisplay(Display):
    """Lets the worker know that a long evaluation is no standstill."""

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__()
        self._tell, self._told_at_seconds = tell, 0.0

    @contextlib.contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        with super().progress(description, total) as advance:

            def told(done: int) -> None:
                advance(done)
                if time.monotonic() - self._told_at_seconds >= ALIVE_MESSAGE_SECONDS:
                    self._told_at_seconds = time.monotonic()
                    self._tell()

            yield told


class BudgetSpent(Pruned):
    """The study can't pay for another step."""


def _run(request: Request, connection: Connection, started: float) -> None:
    params = request.params
    if params is None:
        params = _propose(request)
        connection.send(Proposed(params))
    observe = _observer(request, connection, started)
    from peftsweep.sweeps.execution.hydra_job import run_composed

    # ++: an argument of a method that its YAML does not name can be searched too.
    overrides = [*request.overrides, *(f"++{override}" for override in as_overrides(params))]
    run_composed(
        overrides,
        Path(request.folder),
        Path(request.config_dir) if request.config_dir else None,
        number=request.number,
        display=_TellingDisplay(lambda: connection.send(Alive())),
        begun=lambda run_id: connection.send(Begun(run_id)),
        observe=observe,
    )


def _propose(request: Request) -> dict[str, Any]:
    from peftsweep.sweeps.protocol.search import propose

    return propose(
        request.space,
        request.history,
        sampler=request.sampler,
        kwargs=request.sampler_kwargs,
        seed=request.seed,
        direction=request.direction,
    )


def _observer(request: Request, connection: Connection, started: float) -> Callable[[int, dict[str, float], int], None]:
    """Tells the worker of steps and reports, and ends the job when the worker or the budget says so."""
    last_told_seconds = 0.0

    def observe(step: int, metrics: dict[str, float], tokens: int) -> None:
        nonlocal last_told_seconds
        now = time.monotonic()
        if now - last_told_seconds >= STEP_MESSAGE_SECONDS:
            last_told_seconds = now
            connection.send(Stepped(step, tokens))
        if request.report in metrics:
            connection.send(Reported(step, metrics[request.report]))
            if not connection.recv():
                raise Pruned(f"the pruner ended it after step {step}")
        elif request.tokens is not None and tokens > request.tokens:
            raise BudgetSpent(f"the study's training tokens are spent after step {step}")
        elif request.seconds is not None and now - started > request.seconds:
            raise BudgetSpent(f"the study's device seconds are spent after step {step}")

    return observe


def _end_with(parent: int) -> None:
    """A worker that is killed can't tell anybody: its child dies too, before the trial is given to another one. Had it
    gone on, both might finish the trial. Linux sees to that at once; elsewhere the child itself, a moment later."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
