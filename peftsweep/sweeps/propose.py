"""Which settings a study tries next: a pure function of what was tried so far.

Each call builds a small study in memory, the view, in which every trial is put so that the sampler learns from it, asks
a fresh sampler for one point and forgets both. So there is no state that a resumed or restarted worker could lack.

In the view all is minimised. A pruned trial gets the final value that its last report lets one expect; a diverged or
out-of-memory one the worst value seen; a running one counts as busy; a failed one says nothing.
"""

from __future__ import annotations

import inspect
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peftsweep.errors import ConfigError, Problem
from peftsweep.sweeps.space import Space, coordinates, values

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler

DEFAULT_SAMPLER = "gp"
# Our defaults where Optuna's suit longer studies.
DEFAULT_KWARGS: Mapping[str, Mapping[str, Any]] = {"gp": {"n_startup_trials": 4}, "tpe": {"n_startup_trials": 4}}
CLASSES = {"gp": "GPSampler", "tpe": "TPESampler", "random": "RandomSampler", "qmc": "QMCSampler"}
# Objects and switches that a configuration can't or needn't give.
NOT_SETTABLE = {"self", "seed", "independent_sampler", "constraints_func", "warn_independent_sampling"}
REPEATED_ASKS = 5
RANDOM_DRAWS = 200


@dataclass(frozen=True)
class Seen:
    """One trial as the sampler sees it.

    params: job values; state: ok, pruned, oom, diverged, running or failed; value: the final objective where ok;
    reports: step -> objective during training; violations: constraint -> amount above its limit, 0 or less is kept.
    """

    params: Mapping[str, Any]
    state: str
    value: float | None = None
    reports: Mapping[int, float] = field(default_factory=dict)
    violations: Mapping[str, float] = field(default_factory=dict)


def propose(
    space: Space, seen: Sequence[Seen], *, sampler: str, kwargs: Mapping[str, Any], seed: int, direction: str
) -> dict[str, Any]:
    """The next settings, job values by key; the same for the same arguments.

    Settings that were tried are not given again while the space has others. Raises ConfigError where the sampler or one
    of its arguments does not exist.
    """

    inside = [trial for trial in seen if len(coordinates(space, trial.params)) == len(space)]
    tried = {_key(space, trial.params) for trial in inside}
    distributions = {dimension.key: dimension.coordinate_distribution() for dimension in space}
    with _quiet():
        view = _build_view(space, inside, build_sampler(sampler, kwargs, seed), direction)
        for _ in range(REPEATED_ASKS):
            found = values(space, view.ask(distributions).params)
            if _key(space, found) not in tried:
                return found
            # The ask leaves its point behind as running, which the next ask avoids.
    return _untried(space, tried, seed) or found


def build_sampler(name: str, kwargs: Mapping[str, Any], seed: int) -> BaseSampler:
    """An Optuna sampler by its short name; raises ConfigError for an unknown name or argument."""
    import optuna

    if name not in CLASSES:
        raise ConfigError(Problem("a sampler is one of " + ", ".join(CLASSES), name, "sampler"))
    cls = getattr(optuna.samplers, CLASSES[name])
    known = set(inspect.signature(cls.__init__).parameters) - NOT_SETTABLE
    if unknown := sorted(set(kwargs) - known):
        fix = f"Known are {', '.join(sorted(known))}."
        raise ConfigError(*(Problem(f"{CLASSES[name]} has no such argument", key, "sampler", fix) for key in unknown))
    quiet = (
        {"warn_independent_sampling": False}
        if "warn_independent_sampling" in inspect.signature(cls.__init__).parameters
        else {}
    )
    sampler: BaseSampler = cls(seed=seed, **{**quiet, **DEFAULT_KWARGS.get(name, {}), **kwargs})
    return sampler


def _build_view(space: Space, seen: Sequence[Seen], sampler: BaseSampler, direction: str) -> Study:
    import optuna

    view = optuna.create_study(sampler=sampler, direction="minimize", storage=optuna.storages.InMemoryStorage())
    losses = SQUASH(losses_of(seen, direction), seen, direction)
    bounds = _constraints(seen)
    for trial, loss, constraint in zip(seen, losses, bounds, strict=True):
        if trial.state == "running" or loss is not None:
            view.add_trial(_as_trial(space, trial, loss, constraint))
    return view


def _as_trial(space, trial, loss, constraint):
    from optuna.trial import TrialState, create_trial

    return create_trial(
        state=TrialState.RUNNING if trial.state == "running" else TrialState.COMPLETE,
        value=loss,
        params=coordinates(space, trial.params),
        distributions={d.key: d.coordinate_distribution() for d in space},
        constraints=constraint if trial.state != "running" else None,
    )


def losses_of(seen, direction):
    sign = 1.0 if direction == "minimize" else -1.0
    done = [t for t in seen if t.state == "ok" and t.value is not None and math.isfinite(t.value)]
    found = [_loss(t, done, sign) for t in seen]
    known = [x for x in found if x is not None]
    worst = max(known, default=1.0)
    return [worst if t.state in ("diverged", "oom") else x for t, x in zip(seen, found, strict=True)]


def _loss(trial, done, sign):
    if trial.state == "ok":
        return sign * trial.value if trial.value is not None else None
    if trial.state == "pruned" and trial.reports:
        return PREDICT(trial, done, sign)
    return None


def predict_interp(trial, done, sign):
    step = max(trial.reports)
    report = sign * trial.reports[step]
    pairs = sorted((sign * o.reports[step], sign * o.value) for o in done if step in o.reports)
    if not pairs:
        return report
    best = min(sign * o.value for o in done)
    lower = [p for p in pairs if p[0] <= report]
    upper = [p for p in pairs if p[0] > report]
    positive = all(p[0] > 0 and p[1] > 0 for p in pairs) and report > 0
    if not lower:
        return max(best, upper[0][1])
    if not upper:
        x, y = lower[-1]
        return max(best, y * report / x if positive else y + report - x)
    (x0, y0), (x1, y1) = lower[-1], upper[0]
    s = (report - x0) / (x1 - x0)
    return max(best, y0 + s * (y1 - y0))


def predict_ratio(trial, done, sign):
    step = max(trial.reports)
    report = sign * trial.reports[step]
    pairs = sorted((sign * o.reports[step], sign * o.value) for o in done if step in o.reports)
    if not pairs:
        return report
    best = min(sign * o.value for o in done)
    x, y = min(pairs, key=lambda p: abs(p[0] - report))
    return max(best, y * report / x)


def predict_last(trial, done, sign):
    return sign * trial.reports[max(trial.reports)]


PREDICT = predict_interp


def sq_none(losses, seen, direction):
    return losses


def sq_log(losses, seen, direction):
    known = [x for x in losses if x is not None]
    if not known or min(known) <= 0:
        return losses
    return [None if x is None else math.log(x) for x in losses]


def sq_rank(losses, seen, direction):
    from scipy.stats import norm

    known = sorted(x for x in losses if x is not None)
    return [None if x is None else float(norm.ppf((known.index(x) + 0.5) / len(known))) for x in losses]


def sq_logclip(losses, seen, direction):
    """log, then nothing further from the best than twice the median distance."""
    return clip(sq_log(losses, seen, direction))


def sq_clip(losses, seen, direction):
    return clip(losses)


def clip(losses, factor=1.0):
    import statistics

    known = [x for x in losses if x is not None]
    if not known:
        return losses
    best = min(known)
    limit = best + factor * (statistics.median(known) - best)
    if limit <= best:
        return losses
    return [None if x is None else min(x, limit) for x in losses]


def sq_clip2(losses, seen, direction):
    return clip(losses, 2.0)


def sq_logclip2(losses, seen, direction):
    return clip(sq_log(losses, seen, direction), 2.0)


def sq_asinh(losses, seen, direction):
    known = sorted(x for x in losses if x is not None)
    if len(known) < 2:
        return losses
    gap = known[max(1, len(known) // 4)] - known[0]
    return losses if gap <= 0 else [None if x is None else math.asinh((x - known[0]) / gap) for x in losses]


SQUASH = sq_log


def _constraints(seen):
    names = sorted({name for t in seen for name in t.violations})
    if any(t.state == "oom" for t in seen):
        names.append("fits")
    if not names:
        return [None] * len(seen)
    return [
        {n: (1.0 if t.state == "oom" else -1.0) if n == "fits" else t.violations.get(n, 0.0) for n in names}
        for t in seen
    ]


def _key(space: Space, params):
    return tuple(params[d.key] for d in space)


def _untried(space, tried, seed):
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log lines and its warnings of experimental features are about the view, which no user knows."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
