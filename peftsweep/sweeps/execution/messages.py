"""What a worker and the process that runs its trials send each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
    """No step was done, but something was: an evaluation goes on."""


@dataclass(frozen=True)
class Stepped:
    step: int
    tokens: int


@dataclass(frozen=True)
class Reported:
    """Answered with True (go on) or False (prune)."""

    step: int
    value: float
