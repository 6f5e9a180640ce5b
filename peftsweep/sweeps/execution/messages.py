"""What a worker and its child say to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peftsweep.records.space import Space


@dataclass(frozen=True)
class Request:
    """One trial to run.

    params: settings, or None to have them proposed from `history`; overrides: all other settings; report: the metric
    that is reported after validations, and may end the trial.
    """

    overrides: tuple[str, ...]
    folder: str
    report: str
    params: dict[str, Any] | None = None
    space: Space = ()
    history: tuple[Any, ...] = ()  # of propose.Seen
    sampler: str = "gp"
    sampler_kwargs: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    direction: str = "minimize"
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
