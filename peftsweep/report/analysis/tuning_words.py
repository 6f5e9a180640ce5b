"""What tuning says, in words: the best settings, how wide the good band of learning rates is, what lies at the end of
its range, and which settings mattered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peftsweep.records.jobs import SearchRange
from peftsweep.records.quantities import counted, plain, quantity
from peftsweep.report.analysis.tuning import Tuning, same, sort_key

EDGE_SHARE = 0.08  # of a range, at either end: as the sweep itself judges it
WIDEN_FACTOR = 10.0  # how much further a rate should be tried
MIN_TRIALS_FOR_IMPORTANCE = 10  # that ran to their end
GOOD_TRIALS = 5  # that PED-ANOVA compares with the rest; Optuna advises at least as many


def tuning_sentences(tuning: Tuning) -> list[str]:
    """What a reader should take from the trials, in words: the best, what tuning gained, how wide the good band is."""
    best = tuning.best_trial
    if best is None or best.value is None:
        ended = counted(len(tuning.trials), "trial")
        return [f"None of {ended} ran to its end with a finite {quantity(tuning.objective).name}."]
    shown = quantity(tuning.objective, [best.value])
    told = [f"Best: {_settings(best.settings)}, {shown.name} {shown.text(best.value)}."]
    default = tuning.default_trial
    if default and default.value is not None:
        ended = "" if default.is_ok else " when it was ended early"
        told.append(
            "The default settings are the best."
            if default is best
            else f"Default: {_settings(default.settings)}, {shown.text(default.value)}{ended}."
        )
    return [*told, *_band(tuning)]


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{quantity(key).name} {plain(value)}" for key, value in settings.items())


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
    return [
        f"the best {quantity(found.key).name}, {plain(best[found.key])}, lies at the "
        f"{'upper' if edge == 'high' else 'lower'} end of what was searched; "
        f"try {'up' if edge == 'high' else 'down'} to {plain(beyond)}."
        for found in tuning.ranges
        if found.key in best
        and (edge := _edge(found, best[found.key]))
        and (beyond := _beyond(found, edge)) is not None
    ]


def _edge(found: SearchRange, value: Any) -> str | None:
    if found.choices:
        is_ordered = len(found.choices) > 1 and list(found.choices) == sorted(found.choices, key=sort_key)
        numbers = all(isinstance(choice, (int, float)) and not isinstance(choice, bool) for choice in found.choices)
        if not (is_ordered and numbers):
            return None
        return "high" if same(value, found.choices[-1]) else "low" if same(value, found.choices[0]) else None
    if found.low is None or found.high is None or found.high <= found.low:
        return None
    low, high, here = (math.log(v) if found.log else v for v in (found.low, found.high, value))
    share = (here - low) / (high - low)
    return "high" if share >= 1 - EDGE_SHARE else "low" if share <= EDGE_SHARE else None


def _beyond(found: SearchRange, edge: str) -> float | None:
    """As far as a wider search would go; None where nothing lies beyond: below 0 few settings mean anything."""
    if found.choices:
        first, last = found.choices[0], found.choices[-1]
        if (last if edge == "high" else first) <= 0:
            return None
        smaller = first // 2 if isinstance(first, int) else first / 2
        return last * 2 if edge == "high" else smaller or None
    assert found.low is not None
    assert found.high is not None
    span = found.high - found.low
    if edge == "high":
        return found.high * WIDEN_FACTOR if found.log else found.high + span
    lower = found.low / WIDEN_FACTOR if found.log else found.low - span
    lower = max(lower, 0.0) if found.low >= 0 else lower
    lower = max(1.0, round(lower)) if found.integer and found.log else lower
    return lower if lower < found.low else None


def parameter_importance(tuning: Tuning) -> dict[str, float]:
    """Each setting's share in what the good trials have in common, by PED-ANOVA (Watanabe et al., 2023), the most
    important first; empty for too few trials, or where it is not known what was searched."""
    keys = {found.key for found in tuning.ranges}
    ended = [trial for trial in tuning.trials if trial.is_ok and keys <= trial.settings.keys()]
    if len(ended) < MIN_TRIALS_FOR_IMPORTANCE or len(keys) < 2:
        return {}
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    distributions = {
        found.key: _distribution(found, [trial.settings[found.key] for trial in ended]) for found in tuning.ranges
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


def _distribution(found: SearchRange, tried: Sequence[Any]) -> Any:
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
