"""What a trial is worth: its final loss where it ran to its end, the one to be expected where it did not.

ok               its value, as a logarithm where all are positive and lower is better: the 5.0 of a rate that fails
                 must not hide the difference between 0.29 and 0.30
pruned           the value that its last report lets one expect, from how completed trials went on from there
diverged, oom    the worst value
running, failed  nothing is known
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Observation:
    """One trial as the sampler sees it.

    params: job values; state: ok, pruned, oom, diverged, running or failed; value: the final objective where ok;
    reports: step -> objective during training; violations: constraint -> amount above its limit (0 or less is within).
    """

    params: Mapping[str, Any]
    state: str
    value: float | None = None
    reports: Mapping[int, float] = field(default_factory=dict)
    violations: Mapping[str, float] = field(default_factory=dict)


def losses_of(history: Sequence[Observation], direction: str) -> list[float | None]:
    """What each trial is worth in the view, lower is better; None for running and failed ones."""
    scale = _scale(history, direction)
    completed = [trial for trial in history if trial.state == "ok" and _is_finite(trial.value)]
    known = {id(trial): scale(trial.value) for trial in completed if trial.value is not None}
    for trial in history:
        step = max(trial.reports, default=0)
        if trial.state == "pruned" and _is_finite(trial.reports.get(step)):
            known[id(trial)] = _expected_loss(step, trial.reports[step], completed, scale)
    worst = max(known.values(), default=0.0)
    if known and worst == min(known.values()):
        worst += 1.0  # a failure must look worse than the only success
    return [None if trial.state in ("running", "failed") else known.get(id(trial), worst) for trial in history]


def _scale(history: Sequence[Observation], direction: str) -> Callable[[float], float]:
    if direction == "maximize":
        return lambda value: -value
    numbers = [number for trial in history for number in (trial.value, *trial.reports.values()) if _is_finite(number)]
    return math.log if all(number > 0 for number in numbers if number is not None) else float


def _expected_loss(
    step: int, report: float, completed: Sequence[Observation], scale: Callable[[float], float]
) -> float:
    """Completed trials' final loss as a rising, piecewise linear function of their report at the same step.

    Beyond the best and the worst of them it goes on with slope 1, so a promising probe may well look better than all
    that is completed: cut off there, all good probes would look alike.
    """
    pairs = sorted(
        (scale(trial.reports[step]), scale(trial.value))
        for trial in completed
        if trial.value is not None and _is_finite(trial.reports.get(step))
    )
    here = scale(report)
    if not pairs:
        return here
    reports = [pair[0] for pair in pairs]
    finals = list(itertools.accumulate((pair[1] for pair in pairs), max))
    if here <= reports[0]:
        return finals[0] + here - reports[0]
    if here >= reports[-1]:
        return finals[-1] + here - reports[-1]
    above = next(index for index, known in enumerate(reports) if known > here)
    share = (here - reports[above - 1]) / (reports[above] - reports[above - 1])
    return finals[above - 1] + share * (finals[above] - finals[above - 1])


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
