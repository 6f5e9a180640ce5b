"""Which settings a study tries next: a pure function of what was tried so far.

Each call builds a small study in memory, the view, in which every trial stands for what it tells a sampler, asks a
fresh sampler for one point and forgets both. So a resumed or restarted worker has no sampler state to lose.

What a trial is worth there is told by expectation.py. Besides, a running one is busy, so that the sampler looks
elsewhere; one that ran out of memory is outside a constraint; and a failed one is not proposed again.

The first trials climb from the published settings, or are spread over the space: start.py. Later ones keep between
rates that did badly, at first always: bound.py. Measured with tests/bench/bench_sampler.py.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna import Study
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial

from peftsweep.records.space import Space, coordinates
from peftsweep.sweeps.protocol.bound import BOUND_UNTIL, bounded
from peftsweep.sweeps.protocol.candidates import ask, is_near_any, untried
from peftsweep.sweeps.protocol.expectation import Observation, losses_of
from peftsweep.sweeps.protocol.optuna_objects import build_optuna
from peftsweep.sweeps.protocol.start import first_settings

DEFAULT_SAMPLER = "gp"
SAMPLERS = {"gp": "GPSampler", "tpe": "TPESampler", "random": "RandomSampler"}
# Trials, the published default included, before a model of the objective is trusted; a climb may end sooner.
STARTUP_TRIALS = {"gp": 6, "tpe": 6, "random": 0}

REPEATED_ASKS = 4


def propose(
    space: Space,
    history: Sequence[Observation],
    *,
    sampler: str,
    kwargs: Mapping[str, Any],
    seed: int,
    direction: str,
    centre: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The next settings as job values; the same for the same arguments.

    direction: minimize or maximize; centre: settings that the first trials climb from, None: they are spread. Settings
    that were tried are not proposed again while the space has others. Raises ConfigError where the sampler or one of
    its arguments does not exist.
    """
    inside = [trial for trial in history if len(coordinates(space, trial.params)) == len(space)]
    startup_trials, model = build_sampler(sampler, kwargs, seed)
    begun = sum(trial.state != "failed" for trial in inside)
    with _quiet():
        first = first_settings(space, inside, direction, seed=seed, centre=centre) if begun < startup_trials else None
        if first is not None:
            return first
        is_bound = startup_trials > 0 and (begun < BOUND_UNTIL or begun % 2 == 1)
        searched = bounded(space, inside, direction) if is_bound else space
        known = [trial for trial in inside if len(coordinates(searched, trial.params)) == len(space)]
        view = _build_view(searched, [] if sampler == "random" else known, model, direction)
        for _ in range(REPEATED_ASKS):
            found = ask(view, searched)
            if not is_near_any(space, found, inside):
                return found
            # What was asked for stays in the view as running, so that the next answer is another.
        return untried(space, inside, seed) or found


def build_sampler(name: str, kwargs: Mapping[str, Any], seed: int) -> tuple[int, BaseSampler]:
    """The number of trials that are spread first, and the Optuna sampler that comes after them.

    Raises ConfigError for an unknown name, or an argument that the sampler does not take.
    """
    # The spread is done here, and the view never gives the sampler less than it asks for.
    fixed = {"n_startup_trials": 1, "warn_independent_sampling": False, "seed": seed}
    with _quiet():
        model: BaseSampler = build_optuna("sampler", SAMPLERS, name, kwargs, fixed=fixed)
    return int(kwargs.get("n_startup_trials", STARTUP_TRIALS[name])), model


def _build_view(space: Space, history: Sequence[Observation], sampler: BaseSampler, direction: str) -> Study:
    view = optuna.create_study(storage=optuna.storages.InMemoryStorage(), sampler=sampler, direction="minimize")
    for trial, loss, constraints in zip(history, losses_of(history, direction), _constraints_of(history), strict=True):
        if trial.state == "failed":
            continue
        view.add_trial(
            create_trial(
                state=TrialState.RUNNING if loss is None else TrialState.COMPLETE,
                value=loss,
                params=coordinates(space, trial.params),
                distributions={dimension.key: dimension.coordinate_distribution() for dimension in space},
                constraints=None if loss is None else constraints,
            )
        )
    return view


def _constraints_of(history: Sequence[Observation]) -> list[dict[str, float] | None]:
    """The same constraints for each trial, as samplers want them, each in units of its largest amount.

    One that a trial did not measure counts as just kept. Out of memory is one of its own, as no amount is known.
    """
    names = {name for trial in history for name in trial.violations}
    largest = {name: max(abs(trial.violations.get(name, 0.0)) for trial in history) or 1.0 for name in sorted(names)}
    runs_out = any(trial.state == "oom" for trial in history)
    if not runs_out and not names:
        return [None] * len(history)
    return [
        {name: trial.violations.get(name, 0.0) / amount for name, amount in largest.items()}
        | ({"out of memory": 1.0 if trial.state == "oom" else -1.0} if runs_out else {})
        for trial in history
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log lines and its warnings of experimental features would be about the view, which no user knows."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
