"""How each method was tuned: its trials, the best and the published settings among them, and how losses fell."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from peftsweep.records.jobs import Job, last_attempts
from peftsweep.records.metrics import METRICS
from peftsweep.records.results import Stage, Status
from peftsweep.records.space import CAPACITY, LR, Space
from peftsweep.records.studies import OBJECTIVE, Study
from peftsweep.report.analysis.comparison import Row

GOOD_SHARE = 0.01  # of the best objective: what lies so near counts as equally good
CURVE_POINTS = 120  # of one learning curve


@dataclass(frozen=True)
class Trial:
    """settings: of what was searched. value: the objective; of a trial that was ended early, the last one measured."""

    name: str
    status: Status
    settings: Mapping[str, Any]
    value: float | None
    tokens: float  # trained on

    @property
    def is_ok(self) -> bool:
        return self.status is Status.OK and self.value is not None

    @property
    def lr(self) -> float | None:
        """None where it is no number above 0."""
        value = self.settings.get(LR)
        return float(value) if isinstance(value, (int, float)) and value > 0 else None


@dataclass(frozen=True)
class Tuning:
    """The trials of one row, in the order in which they ran. best: the settings that were confirmed."""

    row: str
    objective: str
    trials: tuple[Trial, ...]
    best: Mapping[str, Any]
    space: Space = ()

    @cached_property
    def best_trial(self) -> Trial | None:
        """That of the confirmed settings; the best of all where none has them."""
        ended = [trial for trial in self.trials if trial.is_ok]
        chosen = [trial for trial in ended if self.best and _agree(trial.settings, self.best)]
        return min(chosen or ended, key=self._badness, default=None)

    @cached_property
    def default_trial(self) -> Trial | None:
        """The one with the published settings."""
        defaults = {found.key: found.default for found in self.space}
        if not defaults or None in defaults.values():
            return None
        return next((trial for trial in self.trials if _agree(trial.settings, defaults)), None)

    @property
    def lower_is_better(self) -> bool:
        return not METRICS[self.objective].higher_is_better

    def _badness(self, trial: Trial) -> float:
        assert trial.value is not None
        return trial.value if self.lower_is_better else -trial.value

    def good_trials(self) -> list[Trial]:
        """Those that ran to their end and came within 1% of the best, which is one of them."""
        if self.best_trial is None:
            return []
        limit = self._badness(self.best_trial) + GOOD_SHARE * abs(self._badness(self.best_trial))
        return [trial for trial in self.trials if trial.is_ok and self._badness(trial) <= limit]

    def best_so_far(self) -> list[tuple[int, float, float]]:
        """After each trial that found something better: its number from 1, tokens spent by then, and the objective; at
        last where the search ended."""
        found: list[tuple[int, float, float]] = []
        spent = 0.0
        for number, trial in enumerate(self.trials, 1):
            spent += trial.tokens
            if trial.is_ok and trial.value is not None:
                worse = not found or self._badness(trial) < (found[-1][2] if self.lower_is_better else -found[-1][2])
                found += [(number, spent, trial.value)] if worse else []
        return [*found, (len(self.trials), spent, found[-1][2])] if found else []


def read_tuning(row: Row, jobs: Iterable[Job], studies: Mapping[str, Study]) -> Tuning | None:
    """The trials of a row among all jobs; None where nothing was tuned."""
    tuned = last_attempts(job for job in jobs if job.result.study == row.study and job.result.stage is Stage.TUNE)
    if row.study is None or not tuned:
        return None
    study = studies.get(row.study, Study(row.study))
    keys = [found.key for found in study.space] or [*row.best] or [LR, CAPACITY]
    objective = study.objective or OBJECTIVE
    tuned.sort(key=lambda job: (job.result.started_at, job.name))
    return Tuning(row.name, objective, tuple(_trial(job, keys, objective) for job in tuned), row.best, study.space)


def _trial(job: Job, keys: Sequence[str], objective: str) -> Trial:
    result = job.result
    settings = {key: _number(job.settings[key]) for key in keys if key in job.settings}
    return Trial(
        job.name, result.status, settings, result.metrics.get(objective), result.metrics.get("train/tokens", 0.0)
    )


def _number(value: Any) -> Any:
    """MLflow keeps settings as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(key in one and same(one[key], value) for key, value in other.items())


def same(one: Any, other: Any) -> bool:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6)
    return str(one) == str(other)


def sort_key(value: Any) -> tuple[bool, Any]:
    """Numbers in their order, then the rest by its text."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (False, value) if is_number else (True, str(value))


@dataclass(frozen=True)
class Curve:
    """Of one job: (step, loss) of training, averaged over equal stretches, and of every validation."""

    row: str
    training: tuple[tuple[float, float], ...]
    validation: tuple[tuple[float, float], ...]


def read_curve(row: Row, job: Job, objective: str = "valid/loss") -> Curve | None:
    """The learning curve of a job, thinned; None where its history is gone."""
    history = job.history()
    training, validation = _column(history, "train/loss"), _column(history, objective)
    return Curve(row.name, thinned(training), thinned(validation)) if training or validation else None


def _column(history: Iterable[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    found = [(line["step"], line[key]) for line in history if "step" in line and key in line]
    return [(float(step), float(value)) for step, value in found if math.isfinite(value)]


def thinned(points: Sequence[tuple[float, float]], most: int = CURVE_POINTS) -> tuple[tuple[float, float], ...]:
    """At most so many points: means over equal stretches."""
    stretch = math.ceil(len(points) / most) if points else 1
    parts = [points[i : i + stretch] for i in range(0, len(points), stretch)]
    return tuple((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts)
