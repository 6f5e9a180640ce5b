"""Which settings a study tries next: a pure function of what was tried so far.

Each call builds a small study in memory, the view, in which every trial stands for what it tells a sampler, asks a
fresh sampler for one point and forgets both. So a resumed or restarted worker has no sampler state to lose.

    ok               its value, as a logarithm where all are positive and lower is better: the 5.0 of a rate that fails
                     must not hide the difference between 0.29 and 0.30
    pruned           the value that its last report lets one expect, from how completed trials went on from there
    diverged, oom    the worst value; oom also as outside a constraint
    running          busy: the sampler looks elsewhere
    failed           says nothing about the settings, but they are not proposed again

The first trials are spread over the learning rate, with the published choices for the rest: random ones lie together so
often that a study of a dozen trials misses the best region. Later ones keep between rates that did badly on either side
of the best: a model of so few points would try the ends again for every capacity. Measured with
tests/bench/bench_sampler.py.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from peftsweep.errors import ConfigError, Problem
from peftsweep.records.space import Dimension, Space, coordinates, values

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

DEFAULT_SAMPLER = "gp"
SAMPLERS = {"gp": "GPSampler", "tpe": "TPESampler", "random": "RandomSampler"}
# Trials, the published default included, that are spread before a model of the objective is trusted.
STARTUP_TRIALS = {"gp": 5, "tpe": 5, "random": 0}
# Arguments that are objects, or ours to give.
NOT_SETTABLE = {"self", "seed", "independent_sampler", "constraints_func", "warn_independent_sampling"}

SPREAD_CANDIDATES = 8  # more would make the start the same for every seed
CHOICE_DISTANCE = 0.2  # how far apart the ends of a list of choices count, where those of an interval count 1
# Two rates nearer than this share of their range (15% apart where it spans three decades) are one setting: to run
# the second teaches nothing.
NEAR_SHARE = 0.02
# A poor rate bounds the search only at this share of the range from the best: nearer, its capacity may be the cause.
BOUND_SHARE = 0.1
BOUND_TRIALS = 4  # fewer don't tell what is poor
REPEATED_ASKS = 4
RANDOM_DRAWS = 100
ENUMERABLE = 10_000  # settings of a finite space that are listed to find one that was not tried


@dataclass(frozen=True)
class Seen:
    """One trial as the sampler sees it.

    params: job values; state: ok, pruned, oom, diverged, running or failed; value: the final objective where ok;
    reports: step -> objective during training; violations: constraint -> amount above its limit (0 or less is within).
    """

    params: Mapping[str, Any]
    state: str
    value: float | None = None
    reports: Mapping[int, float] = field(default_factory=dict)
    violations: Mapping[str, float] = field(default_factory=dict)


def propose(
    space: Space, seen: Sequence[Seen], *, sampler: str, kwargs: Mapping[str, Any], seed: int, direction: str
) -> dict[str, Any]:
    """The next settings as job values; the same for the same arguments.

    direction: minimize or maximize. Settings that were tried are not proposed again while the space has others. Raises
    ConfigError where the sampler or one of its arguments does not exist.
    """
    inside = _inside(space, seen)
    startup_trials, model = build_sampler(sampler, kwargs, seed)
    with _quiet():
        if sum(trial.state != "failed" for trial in inside) < startup_trials:
            return _spread(space, inside, seed)
        searched = _bounded(space, inside, direction) if startup_trials else space
        learned_from = [] if sampler == "random" else _inside(searched, inside)
        view = _build_view(searched, learned_from, model, direction)
        for _ in range(REPEATED_ASKS):
            found = _ask(view, searched)
            if not _is_near_any(space, found, inside):
                return found
            # What was asked for stays in the view as running, so that the next answer is another.
        return _untried(space, inside, seed) or found


def build_sampler(name: str, kwargs: Mapping[str, Any], seed: int) -> tuple[int, BaseSampler]:
    """The number of trials that are spread first, and the Optuna sampler that comes after them.

    Raises ConfigError for an unknown name, or an argument that the sampler does not take.
    """
    import optuna

    if name not in SAMPLERS:
        raise ConfigError(Problem(f"the sampler is one of {', '.join(SAMPLERS)}", name, "sampler"))
    sampler_class = getattr(optuna.samplers, SAMPLERS[name])
    parameters = set(inspect.signature(sampler_class.__init__).parameters)
    settable = sorted(parameters - NOT_SETTABLE)
    if unknown := sorted(set(kwargs) - set(settable)):
        fix = f"It takes {', '.join(settable)}." if settable else "It takes none."
        raise ConfigError(
            *(Problem(f"{SAMPLERS[name]} takes no such argument", key, "sampler", fix) for key in unknown)
        )
    # The spread is ours, and the view never gives the sampler less than it asks for.
    startup_trials = int(kwargs.get("n_startup_trials", STARTUP_TRIALS[name]))
    ours = {"n_startup_trials": 1, "warn_independent_sampling": False}
    with _quiet():
        try:
            model = sampler_class(**{**kwargs, **{key: ours[key] for key in ours if key in parameters}, "seed": seed})
        except (TypeError, ValueError) as error:
            raise ConfigError(Problem(f"{SAMPLERS[name]} refuses its arguments: {error}", dict(kwargs))) from error
    return startup_trials, model


def _inside(space: Space, seen: Sequence[Seen]) -> list[Seen]:
    return [trial for trial in seen if len(coordinates(space, trial.params)) == len(space)]


def losses_of(seen: Sequence[Seen], direction: str) -> list[float | None]:
    """What each trial is worth in the view, lower is better; None for running and failed ones."""
    scale = _scale(seen, direction)
    completed = [trial for trial in seen if trial.state == "ok" and _is_finite(trial.value)]
    known = {id(trial): scale(trial.value) for trial in completed if trial.value is not None}
    for trial in seen:
        last = _last_report(trial)
        if trial.state == "pruned" and last is not None:
            known[id(trial)] = _expected_loss(*last, completed, scale)
    worst = max(known.values(), default=0.0)
    if known and worst == min(known.values()):
        worst += 1.0  # a failure must look worse than the only success
    silent = {"running", "failed"}
    return [None if trial.state in silent else known.get(id(trial), worst) for trial in seen]


def _scale(seen: Sequence[Seen], direction: str) -> Callable[[float], float]:
    if direction == "maximize":
        return lambda value: -value
    numbers = [number for trial in seen for number in (trial.value, *trial.reports.values()) if _is_finite(number)]
    return math.log if all(number > 0 for number in numbers if number is not None) else float


def _expected_loss(step: int, report: float, completed: Sequence[Seen], scale: Callable[[float], float]) -> float:
    """Completed trials' final loss as a rising, piecewise linear function of their report at the same step.

    Beyond the best and the worst of them it goes on with slope 1, so a promising probe may well look better than all
    that is completed: cut off there, all good probes would look alike.
    """
    from itertools import accumulate

    pairs = sorted(
        (scale(trial.reports[step]), scale(trial.value))
        for trial in completed
        if trial.value is not None and _is_finite(trial.reports.get(step))
    )
    here = scale(report)
    if not pairs:
        return here
    reports = [pair[0] for pair in pairs]
    finals = list(accumulate((pair[1] for pair in pairs), max))
    if here <= reports[0]:
        return finals[0] + here - reports[0]
    if here >= reports[-1]:
        return finals[-1] + here - reports[-1]
    above = next(index for index, known in enumerate(reports) if known > here)
    share = (here - reports[above - 1]) / (reports[above] - reports[above - 1])
    return finals[above - 1] + share * (finals[above] - finals[above - 1])


def _last_report(trial: Seen) -> tuple[int, float] | None:
    if not trial.reports:
        return None
    step = max(trial.reports)
    return (step, trial.reports[step]) if _is_finite(trial.reports[step]) else None


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _build_view(space: Space, seen: Sequence[Seen], sampler: BaseSampler, direction: str) -> Study:
    import optuna

    view = optuna.create_study(storage=optuna.storages.InMemoryStorage(), sampler=sampler, direction="minimize")
    for trial, loss, constraints in zip(seen, losses_of(seen, direction), _constraints_of(seen), strict=True):
        if trial.state != "failed":
            view.add_trial(_as_view_trial(space, trial, loss, constraints))
    return view


def _as_view_trial(space: Space, trial: Seen, loss: float | None, constraints: dict[str, float] | None) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    return create_trial(
        state=TrialState.RUNNING if loss is None else TrialState.COMPLETE,
        value=loss,
        params=coordinates(space, trial.params),
        distributions=_distributions(space),
        constraints=None if loss is None else constraints,
    )


def _constraints_of(seen: Sequence[Seen]) -> list[dict[str, float] | None]:
    """The same constraints for each trial, as samplers want them, each in units of its largest amount.

    One that a trial did not measure counts as just kept. Out of memory is one of its own, as no amount is known.
    """
    names = {name for trial in seen for name in trial.violations}
    largest = {name: max(abs(trial.violations.get(name, 0.0)) for trial in seen) or 1.0 for name in sorted(names)}
    runs_out = any(trial.state == "oom" for trial in seen)
    if not runs_out and not names:
        return [None] * len(seen)
    return [
        {name: trial.violations.get(name, 0.0) / amount for name, amount in largest.items()}
        | ({"out of memory": 1.0 if trial.state == "oom" else -1.0} if runs_out else {})
        for trial in seen
    ]


def _bounded(space: Space, seen: Sequence[Seen], direction: str) -> Space:
    """The space between the nearest trials of the worse half below and above the best one, interval by interval."""
    judged = [
        (loss, trial)
        for loss, trial in zip(losses_of(seen, direction), seen, strict=True)
        if loss is not None and trial.state != "oom"
    ]
    if len(judged) < BOUND_TRIALS:
        return space
    best = min(judged, key=lambda pair: pair[0])[1]
    limit = statistics.median(loss for loss, _ in judged)
    poor = [trial for loss, trial in judged if loss >= limit]
    return tuple(d if d.choices else _between(d, best.params[d.key], [t.params[d.key] for t in poor]) for d in space)


def _between(dimension: Dimension, best: float, poor: Sequence[float]) -> Dimension:
    here = dimension.share_of(best)
    below = [value for value in poor if dimension.share_of(value) <= here - BOUND_SHARE]
    above = [value for value in poor if dimension.share_of(value) >= here + BOUND_SHARE]
    return replace(dimension, low=max(below, default=dimension.low), high=min(above, default=dimension.high))


def _spread(space: Space, seen: Sequence[Seen], seed: int) -> dict[str, Any]:
    """Of a few random settings the one that is farthest from those tried and from the ends of the intervals.

    Choices keep their published default where they have one. An end keeps settings half as far away as a trial does.
    """
    published = tuple(replace(d, choices=(d.default,)) if d.choices and d.holds(d.default) else d for d in space)
    draws = _draws(published, seed, SPREAD_CANDIDATES)
    candidates = [found for found in draws if not _is_near_any(space, found, seen)]

    def room(found: Mapping[str, Any]) -> float:
        to_trials = (_distance(space, found, trial.params) for trial in seen)
        shares = [dimension.share_of(found[dimension.key]) for dimension in space if not dimension.choices]
        return min((*to_trials, *(2 * min(share, 1 - share) for share in shares)), default=math.inf)

    return max(candidates, key=room) if candidates else _untried(space, seen, seed) or draws[0]


def _distance(space: Space, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    def along(dimension: Dimension) -> float:
        first, second = one[dimension.key], other[dimension.key]
        if dimension.choices and not dimension.is_ordered:
            return CHOICE_DISTANCE * (first != second)
        apart = abs(dimension.share_of(first) - dimension.share_of(second))
        return CHOICE_DISTANCE * apart if dimension.choices else apart

    return math.hypot(*(along(dimension) for dimension in space))


def _untried(space: Space, seen: Sequence[Seen], seed: int) -> dict[str, Any] | None:
    """Some settings away from those tried; failing that, any that were not tried; None where all were."""
    draws = _draws(space, seed, RANDOM_DRAWS)
    tried = {_key(space, trial.params) for trial in seen}
    apart = (found for found in draws if not _is_near_any(space, found, seen))
    new = (found for found in itertools.chain(draws, _all_settings(space)) if _key(space, found) not in tried)
    return next(apart, None) or next(new, None)


def _all_settings(space: Space) -> Iterator[dict[str, Any]]:
    """Every setting of a space of choices alone; nothing where it has intervals or is too large to list."""
    choices = [dimension.choices for dimension in space]
    if all(choices) and math.prod(map(len, choices)) <= ENUMERABLE:
        yield from (dict(zip((d.key for d in space), found, strict=True)) for found in itertools.product(*choices))


def _draws(space: Space, seed: int, count: int) -> list[dict[str, Any]]:
    import optuna

    view = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [_ask(view, space) for _ in range(count)]


def _ask(view: Study, space: Space) -> dict[str, Any]:
    return values(space, view.ask(_distributions(space)).params)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {dimension.key: dimension.coordinate_distribution() for dimension in space}


def _is_near_any(space: Space, found: Mapping[str, Any], seen: Sequence[Seen]) -> bool:
    return any(all(_is_near(dimension, found, trial.params) for dimension in space) for trial in seen)


def _is_near(dimension: Dimension, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    first, second = one[dimension.key], other[dimension.key]
    if dimension.choices:
        return bool(first == second)
    return abs(dimension.share_of(first) - dimension.share_of(second)) <= NEAR_SHARE


def _key(space: Space, params: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(params[dimension.key] for dimension in space)


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
