"""How each method was tuned: its trials, the best and the published settings among them, how losses fell; and what that
says in words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

from peftsweep.records.jobs import Job, last_attempts
from peftsweep.records.metrics import METRICS
from peftsweep.records.quantities import counted, format_settings, plain, quantity
from peftsweep.records.results import Stage, Status
from peftsweep.records.space import CAPACITY, LR, Dimension, Space, edges_of, widened
from peftsweep.records.studies import OBJECTIVE, Study
from peftsweep.report.analysis.comparison import Row

GOOD_SHARE = 0.01  # of the best objective: what lies so near counts as equally good
CURVE_POINTS = 120  # of one learning curve
MIN_TRIALS_FOR_IMPORTANCE = 10  # that ran to their end
GOOD_TRIALS = 5  # that PED-ANOVA compares with the rest; Optuna advises at least as many


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
        return float(value) if is_number(value) and value > 0 else None


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
        chosen = [trial for trial in ended if self.best and agree(trial.settings, self.best)]
        return min(chosen or ended, key=self._badness, default=None)

    @cached_property
    def default_trial(self) -> Trial | None:
        """The one with the published settings."""
        defaults = {found.key: found.default for found in self.space}
        if not defaults or None in defaults.values():
            return None
        return next((trial for trial in self.trials if agree(trial.settings, defaults)), None)

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
    trials = tuple(
        Trial(
            job.name,
            job.result.status,
            {key: _number(job.settings[key]) for key in keys if key in job.settings},
            job.result.metrics.get(objective),
            job.result.metrics.get("train/tokens", 0.0),
        )
        for job in tuned
    )
    return Tuning(row.name, objective, trials, row.best, study.space)


def _number(value: Any) -> Any:
    """MLflow keeps settings as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def agree(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether settings have all values that are wanted, of either source of jobs."""
    return all(_same(_number(settings.get(key)), _number(value)) for key, value in wanted.items())


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6)
    return str(one) == str(other)


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def sort_key(value: Any) -> tuple[bool, Any]:
    """Numbers in their order, then the rest by its text."""
    return (False, value) if is_number(value) else (True, str(value))


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


def tuning_sentences(tuning: Tuning) -> list[str]:
    """What a reader should take from the trials, in words: the best, what tuning gained, how wide the good band is."""
    best = tuning.best_trial
    if best is None or best.value is None:
        ended = counted(len(tuning.trials), "trial")
        return [f"None of {ended} ran to its end with a finite {quantity(tuning.objective).name}."]
    shown = quantity(tuning.objective, [best.value])
    told = [f"Best: {format_settings(best.settings)}, {shown.name} {shown.text(best.value)}."]
    default = tuning.default_trial
    if default and default.value is not None:
        ended = "" if default.is_ok else " when it was ended early"
        told.append(
            "The default settings are the best."
            if default is best
            else f"Default: {format_settings(default.settings)}, {shown.text(default.value)}{ended}."
        )
    return [*told, *_band(tuning)]


def _band(tuning: Tuning) -> Iterator[str]:
    """How carefully the learning rate must be chosen, as far as the trials tell."""
    rates = [trial.lr for trial in tuning.good_trials() if trial.lr is not None]
    if len(rates) > 1 and max(rates) > min(rates):
        ratio = max(rates) / min(rates)
        yield (
            f"Within 1% of the best: learning rates from {plain(min(rates))} to {plain(max(rates))}, "
            f"a factor of {ratio:.2g} ({counted(len(rates), 'trial')})."
        )
    elif rates:
        yield "No other learning rate that was tried came within 1% of the best."


def edge_warnings(tuning: Tuning) -> list[str]:
    """Best values at an end of what was searched, with what to try instead."""
    best = tuning.best_trial.settings if tuning.best_trial else {}
    edges = edges_of(tuning.space, best)
    return [_edge_warning(found, best[found.key], edges[found.key]) for found in tuning.space if found.key in edges]


def _edge_warning(found: Dimension, best: Any, edge: str) -> str:
    wider, at_top = widened(found, edge), edge == "high"
    low, high = (wider.choices[0], wider.choices[-1]) if wider.choices else (wider.low, wider.high)
    return (
        f"the best {quantity(found.key).name}, {plain(best)}, lies at the {'upper' if at_top else 'lower'} end of what "
        f"was searched; try {'up' if at_top else 'down'} to {plain(high if at_top else low)}."
    )


def parameter_importance(tuning: Tuning) -> dict[str, float]:
    """Each setting's share in what the good trials have in common, by PED-ANOVA (Watanabe et al., 2023), the most
    important first; empty for too few trials, or where it is not known what was searched."""
    keys = {found.key for found in tuning.space}
    ended = [trial for trial in tuning.trials if trial.is_ok and keys <= trial.settings.keys()]
    if len(ended) < MIN_TRIALS_FOR_IMPORTANCE or len(keys) < 2:
        return {}
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    distributions = {
        found.key: _distribution(found, [trial.settings[found.key] for trial in ended]) for found in tuning.space
    }
    quantile = max(0.1, min(0.5, GOOD_TRIALS / len(ended)))
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # Optuna tells of every study, and that PED-ANOVA is new
    try:
        study = optuna.create_study(direction="minimize" if tuning.lower_is_better else "maximize")
        for trial in ended:
            params = {key: trial.settings[key] for key in distributions}
            study.add_trial(optuna.trial.create_trial(value=trial.value, params=params, distributions=distributions))
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=quantile))
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {key: share for key, share in shares.items() if math.isfinite(share)}


def _distribution(found: Dimension, tried: Sequence[Any]) -> Any:
    """Of what was searched and what was tried: a range may have been widened on the way."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if found.choices:
        return CategoricalDistribution(tuple(dict.fromkeys((*found.choices, *tried))))
    assert found.low is not None
    assert found.high is not None
    low, high = min(found.low, *tried), max(found.high, *tried)
    if found.integer:
        return IntDistribution(int(low), int(high), log=found.log)
    return FloatDistribution(low, high, log=found.log)
