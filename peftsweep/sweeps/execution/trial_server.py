"""What the process of a worker's trials does: run one after another, keeping the frozen base model and tokenised data.

Started as `python -m peftsweep.sweeps.execution.trial_server <descriptor> <worker>`. Over a socket a `TrialRequest`
comes in, messages go out, an `Outcome` ends each trial. Whatever a trial does to this process, the worker outlives it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

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
from peftsweep.job.ranks import die_with
from peftsweep.records.space import as_overrides
from peftsweep.sweeps.execution.outcomes import OUTCOME_FILE, with_result
from peftsweep.sweeps.execution.trial_process import Alive, Begun, Proposed, Reported, Stepped, TrialRequest
from peftsweep.sweeps.protocol.trials import Ending, Outcome

STEP_MESSAGE_SECONDS = 0.5  # between messages about steps, at least
ALIVE_MESSAGE_SECONDS = 5.0


class BudgetSpent(Pruned):
    """The study can't pay for another step."""


ENDINGS: dict[type[PeftsweepError], Ending] = {  # the first that an error is an instance of
    BudgetSpent: Ending.SPENT,
    Pruned: Ending.PRUNED,
    Interrupted: Ending.INTERRUPTED,
    OutOfMemoryError: Ending.OOM,
    NonFiniteLossError: Ending.DIVERGED,
    **dict.fromkeys((ConfigError, DataError, MethodError, ModelError), Ending.REFUSED),
}


def main(descriptor: int, worker: int) -> None:
    """Serve requests until the worker, a process id, closes its end."""
    die_with(worker)
    connection = Connection(descriptor)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        connection.send(serve(request, connection))


def serve(request: TrialRequest, connection: Connection) -> Outcome:
    """Run one trial and answer how it ended; raises nothing that belongs to the trial."""
    started = time.monotonic()
    ending, cause = Ending.FINISHED, None
    try:
        _run(request, connection, started)
    except PeftsweepError as error:
        kinds = (ending for kind, ending in ENDINGS.items() if isinstance(error, kind))
        ending, cause = next(kinds, Ending.CRASHED), str(error)
    except KeyboardInterrupt:
        ending, cause = Ending.INTERRUPTED, "interrupted by Ctrl-C"
    except (HydraException, OmegaConfBaseException) as error:
        ending, cause = Ending.REFUSED, str(error)
    except Exception as error:
        ending, cause = Ending.CRASHED, f"{type(error).__name__}: {error}"
    outcome = Outcome(ending, cause, request.folder, seconds=time.monotonic() - started)
    outcome = with_result(outcome, Path(request.folder))
    with contextlib.suppress(OSError):  # the disk is full: the worker gets it as a message anyway
        (Path(request.folder) / OUTCOME_FILE).write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    return outcome


class _ReportingDisplay(Display):
    """Lets the worker know that a long evaluation is no standstill."""

    def __init__(self, send_alive: Callable[[str], None]) -> None:
        super().__init__()
        self._send_alive, self._sent_at_seconds = send_alive, 0.0

    @contextlib.contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        with super().progress(description, total) as advance:
            so_far = 0

            def advance_and_report(done: int) -> None:
                nonlocal so_far
                so_far += done
                advance(done)
                if time.monotonic() - self._sent_at_seconds >= ALIVE_MESSAGE_SECONDS:
                    self._sent_at_seconds = time.monotonic()
                    self._send_alive(f"{description} {so_far}/{total}")

            yield advance_and_report


def _run(request: TrialRequest, connection: Connection, started: float) -> None:
    params = request.params
    if params is None:
        from peftsweep.sweeps.protocol.search import propose

        params = propose(**(request.proposal or {}))
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
        display=_ReportingDisplay(lambda doing: connection.send(Alive(doing))),
        begun=lambda run_id: connection.send(Begun(run_id)),
        observe=observe,
    )


def _observer(
    request: TrialRequest, connection: Connection, started: float
) -> Callable[[int, dict[str, float], int], None]:
    """Tells the worker of steps and reports, and ends the job when the worker or the budget says so."""
    last_sent_seconds = 0.0

    def observe(step: int, metrics: dict[str, float], tokens: int) -> None:
        nonlocal last_sent_seconds
        now = time.monotonic()
        if now - last_sent_seconds >= STEP_MESSAGE_SECONDS:
            last_sent_seconds = now
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


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
