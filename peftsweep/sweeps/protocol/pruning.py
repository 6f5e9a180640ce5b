"""At which steps a trial reports, and whether it is worth finishing.

The default is successive halving with one rung, after two ninths of the steps, past the warm-up: the first few to get
there are probes, which only show where to look, and stop; later ones go on if they are among the best third. In
tests/bench/bench_sampler.py it was the steadiest of those tried at ten to twelve trials. Optuna's default promotes
whoever leads on arrival, so early trials are finished for want of rivals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna import Study
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from peftsweep.errors import ConfigError, Problem
from peftsweep.sweeps.protocol.optuna_objects import build_optuna

DEFAULT_PRUNER = "successive_halving"
PRUNERS = {"successive_halving": "SuccessiveHalvingPruner", "median": "MedianPruner", "none": "NopPruner"}
FIRST_RUNG_SHARE = 2 / 9
REDUCTION_FACTOR = 3
BOOTSTRAP_COUNT = 6  # the published default, which is never pruned, and five probes
MEDIAN_REPORTS = 8  # reports of a trial, its last step included, for the median pruner


def report_steps(max_steps: int, pruner: str, kwargs: Mapping[str, Any] | None = None) -> tuple[int, ...]:
    """The steps before the last one at which a trial measures its objective, for its pruner to judge.

    Raises ConfigError as build_pruner does.
    """
    given = kwargs or {}
    build_pruner(pruner, given, max_steps)
    if pruner == "successive_halving":
        steps = _rungs(max_steps, {**_defaults(pruner, max_steps), **given})
    elif pruner == "median":
        steps = [round(max_steps * index / MEDIAN_REPORTS) for index in range(1, MEDIAN_REPORTS)]
    else:
        steps = []
    return tuple(sorted({step for step in steps if 0 < step < max_steps}))


def build_pruner(name: str, kwargs: Mapping[str, Any], max_steps: int) -> BasePruner:
    """An Optuna pruner; raises ConfigError for an unknown name, or arguments that it does not take."""
    pruner: BasePruner = build_optuna("pruner", PRUNERS, name, kwargs, default=_defaults(name, max_steps))
    return pruner


def should_prune(study: Study, trial: FrozenTrial, *, pruner: str, kwargs: Mapping[str, Any], max_steps: int) -> bool:
    """Whether the trial, judged by its latest report, should stop. Never the first: the published default is the
    yardstick, and tuning must not do worse than it."""
    # Asked for the first trial too: successive halving notes down there who reached a rung, and with what.
    is_poor = build_pruner(pruner, kwargs, max_steps).prune(study, trial)
    return is_poor and trial.number > 0


def _defaults(name: str, max_steps: int) -> dict[str, Any]:
    if name == "successive_halving":
        first = max(1, round(max_steps * FIRST_RUNG_SHARE))
        return {"min_resource": first, "reduction_factor": REDUCTION_FACTOR, "bootstrap_count": BOOTSTRAP_COUNT}
    if name == "median":  # in the first reports the learning rate is still rising
        return {"n_startup_trials": 4, "n_warmup_steps": max(1, max_steps // MEDIAN_REPORTS)}
    return {}


def _rungs(max_steps: int, arguments: Mapping[str, Any]) -> list[int]:
    """Where successive halving decides. With probes only the first rung: at a later one, too, it would stop the first
    to arrive, which are the good ones."""
    first, factor = arguments["min_resource"], arguments["reduction_factor"]
    if not isinstance(first, int):
        raise ConfigError(Problem("min_resource is a number of steps here", first, "pruner"))
    step = first * factor ** arguments.get("min_early_stopping_rate", 0)
    rungs = [step]
    while not arguments["bootstrap_count"] and step * factor < max_steps:
        step *= factor
        rungs.append(step)
    return rungs
