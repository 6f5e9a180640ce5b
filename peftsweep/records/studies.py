"""A study: what it searched, by what its trials are judged, which of them is the best, and how that is confirmed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from peftsweep.config.units import parse_margin
from peftsweep.errors import DataError, Problem
from peftsweep.records.limits import Limit, parse_limits, violations
from peftsweep.records.metrics import METRICS, sign
from peftsweep.records.space import Space, read_space

OBJECTIVE = "valid/loss"  # where no sweep says by what its trials were judged
FIXED_SEEDS = 3  # of a confirmation without looks, where nobody asks for another number
TrialT = TypeVar("TrialT")


@dataclass(frozen=True)
class Study:
    """What is known of a study beside its jobs. space: empty where nothing says what was searched; then, from MLflow,
    best: the settings that its own sweep found, and has_default_score: whether it judged the published ones.

    looks: numbers of fresh seeds at which its sweep judges the methods; none where that is not known. margin: the
    difference of scores below which they count as equal; None: by the size of the test set.
    """

    name: str  # <sweep>/<label>, as JobResult.study
    objective: str | None = None  # key of METRICS that its trials are judged by
    constraint: str | None = None  # limits that a winner had to keep to, as typed
    space: Space = ()
    best: Mapping[str, Any] | None = None
    has_default_score: bool = False
    looks: tuple[int, ...] = ()
    margin: float | None = None

    @property
    def limits(self) -> tuple[Limit, ...]:
        return parse_limits([self.constraint]) if self.constraint else ()


def read_studies(path: Path) -> list[Study]:
    """The studies of a sweep.json. Raises DataError: it is cut short, or a newer peftsweep wrote it."""
    try:
        sweep = json.loads(path.read_text(encoding="utf-8"))
        confirm = {"rule": "fixed", "looks": (), "seeds": None, "margin": None} | sweep["settings"].get("confirm", {})
        known = Study(
            "",
            METRICS[sweep["objective"]].key,
            sweep["settings"].get("constraint"),
            looks=confirm_looks(confirm["rule"], confirm["looks"], confirm["seeds"]),
            margin=None if confirm["margin"] is None else parse_margin(confirm["margin"]),
        )
        return [replace(known, name=study["name"], space=read_space(study["space"])) for study in sweep["studies"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        rule = f"a sweep.json must describe a sweep ({type(error).__name__}: {error})"
        raise DataError(Problem(rule, source=str(path))) from None


def confirm_looks(rule: str, looks: Sequence[int], seeds: int | None) -> tuple[int, ...]:
    """After how many fresh seeds the best settings are judged; none where nothing is confirmed.

    rule, looks, seeds: as `ConfirmConfig` has them.
    """
    if rule == "fixed":
        return (FIXED_SEEDS,) if seeds is None else (seeds,) if seeds else ()
    most = looks[-1] if seeds is None else seeds
    return (*(look for look in looks if look < most), *([most] if most else []))


def best_trial(
    trials: Iterable[TrialT],
    metrics_of: Callable[[TrialT], Mapping[str, float]],
    objective: str,
    limits: Iterable[Limit] = (),
) -> TrialT | None:
    """The best of trials that ran to their end, of those that keep to the limits; the first of equals.

    metrics_of: what a trial measured. One without the objective can't win; what it did not measure breaks no limit.
    """
    judged = [trial for trial in trials if objective in metrics_of(trial)]
    broken = violations(limits, [metrics_of(trial) for trial in judged])
    fit = [trial for trial, found in zip(judged, broken, strict=True) if all(excess <= 0 for excess in found.values())]
    return min(fit, key=lambda trial: -sign(objective) * metrics_of(trial)[objective], default=None)
