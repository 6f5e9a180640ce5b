"""Exceptions that a caller tells apart. Each states the rule, the value, where it came from and the way out.

All of them survive pickling: a worker raises them in one process, a supervisor reads them in another.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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
    """The nearest known words; where none is near, those to choose from: all, or the `listed` ones of many."""
    close = difflib.get_close_matches(word, known, n=2)
    choices = sorted(known if listed is None else listed)
    return f"Did you mean {' or '.join(close)}?" if close else f"Choose from: {', '.join(choices)}."


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


class TrackingError(PeftsweepError, RuntimeError):
    """The tracking server can't be reached or refused the run."""


class Pruned(PeftsweepError):  # noqa: N818 - nothing went wrong
    """A job was ended early because others are better, or because its study's budget is spent."""


class Interrupted(PeftsweepError):  # noqa: N818 - an order to stop is no error
    """Ctrl-C or SIGTERM: what was computed is kept."""

    exit_code = 130
