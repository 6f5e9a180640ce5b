"""What tuning says, in words: the best settings, how wide the good band of learning rates is, what lies at the end of
its range, and which settings mattered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from peftsweep.records.quantities import counted, format_settings, plain, quantity
from peftsweep.records.space import Dimension, edges_of, widened
from peftsweep.report.analysis.tuning import Tuning

MIN_TRIALS_FOR_IMPORTANCE = 10  # that ran to their end
GOOD_TRIALS = 5  # that PED-ANOVA compares with the rest; Optuna advises at least as many


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
