"""Exceptions that a caller tells apart. Each states the rule, the value, where it came from and the way out.

All of them survive pickling: a worker raises them in one process, a supervisor reads them in another.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

SHORTEST_PART = 3  # letters by which a name is found that holds them
MOST_HOLDING = 5  # of more such names, those of like letters are told


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what the user asked for.

    rule: what must hold, as a full clause; value: what was found instead, as the user wrote it;
    source: the command-line key, file or environment variable it came from; fix: what to do now.
    """

    rule: str
    value: object = None
    source: str = ""
    fix: str = ""

    def __str__(self) -> str:
        text = self.rule
        if self.value is not None:
            text += f", got {self.value!r}"
        if self.source:
            text += f" (from {self.source})"
        text += "."
        return f"{text} {self.fix}" if self.fix else text


def did_you_mean(word: str, known: Sequence[str], listed: Iterable[str] | None = None) -> str:
    """The nearest known words, whatever their case: those that hold it, else those of like letters; where none is near,
    those to choose from: all, or the `listed` ones of many."""
    by_lower = {name.lower(): name for name in known}
    holding = [lower for lower in by_lower if word.lower() in lower] if len(word) >= SHORTEST_PART else []
    if word.lower() in by_lower:
        close = [word.lower()]
    elif 0 < len(holding) <= MOST_HOLDING:
        close = holding
    else:
        close = difflib.get_close_matches(word.lower(), by_lower, n=2)
    if not close:
        return f"Choose from: {', '.join(sorted(known if listed is None else listed))}."
    *others, last = (by_lower[name] for name in close)
    return f"Did you mean {', '.join(others)}{' or ' * bool(others)}{last}?"


# Not all of it is torch's own OutOfMemoryError: libraries allocate for themselves, and so does the driver. cuBLAS says
# that it is not initialised where its workspace finds no room.
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",
    "cusolver_status_alloc_failed",
    "cusparse_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
# After these CUDA answers every later call of the process with the same error: "sticky" in the CUDA runtime's manual.
_LOST_DEVICE = (
    "illegal memory access",
    "illegal instruction",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
    "misaligned address",
    "invalid program counter",
    "hardware stack error",
    "uncorrectable ecc",
    "uncorrectable nvlink",
    "fallen off the bus",
    "gpu is lost",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the accelerator or the host ran out, whatever library says so and whatever error tells it."""
    return any(
        isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM or _tells(cause, _NO_MEMORY)
        for cause in _causes(error)
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether the accelerator's context is dead, so that this process can't use it any more."""
    return any(isinstance(cause, DeviceLostError) or _tells(cause, _LOST_DEVICE) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _tells(error: BaseException, texts: Sequence[str]) -> bool:
    """torch raises RuntimeError for all of it, or a subclass: OutOfMemoryError, and AcceleratorError since 2.8."""
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts)


class PeftsweepError(Exception):
    """Base of all errors that peftsweep raises on purpose. `problems` lists everything that is wrong, not the first
    only."""

    exit_code = 1

    def __init__(self, *problems: Problem | str) -> None:
        super().__init__(*problems)
        self.problems = [p if isinstance(p, Problem) else Problem(p.rstrip(".")) for p in problems]

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class ConfigError(PeftsweepError, ValueError):
    """The composed configuration can't be run."""

    exit_code = 2


class DataError(PeftsweepError, ValueError):
    """Rows, columns or files of a task are missing or unusable."""

    exit_code = 2


class ModelError(PeftsweepError, ValueError):
    """A base model is missing, gated, broken, or needs hardware or a package that is not here."""

    exit_code = 2


class MethodError(PeftsweepError, ValueError):
    """A method can't be attached to this model with these settings."""

    exit_code = 2


class OutputError(PeftsweepError, OSError):
    """The job's folder can't be written."""


class DeviceBusyError(PeftsweepError, RuntimeError):
    """Others hold memory on the accelerator, so a measurement on it would be worth nothing."""


class NonFiniteLossError(PeftsweepError, ArithmeticError):
    """The training loss became NaN or infinite."""


class OutOfMemoryError(PeftsweepError, MemoryError):
    """The accelerator (or the host) ran out of memory."""


class DeviceLostError(PeftsweepError, RuntimeError):
    """The accelerator failed for good: nothing in this process can use it any more."""


class RankLostError(PeftsweepError, RuntimeError):
    """Another process of a job that is spread over several ended before its time."""


class TrackingError(PeftsweepError, RuntimeError):
    """The tracking server can't be reached or refused the run."""


class Pruned(PeftsweepError):  # noqa: N818 - nothing went wrong
    """A job was ended early because others are better, or because its study's budget is spent."""


class Interrupted(PeftsweepError):  # noqa: N818 - an order to stop is no error
    """Ctrl-C or SIGTERM: what was computed is kept."""

    exit_code = 130
