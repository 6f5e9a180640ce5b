"""How many more trials a study may start: trials, training tokens or device seconds, counted in its storage alone.

Only the controller asks, so that nobody else makes tickets at the same time. What runs or waits is counted as if it
ran to its end; what it does not spend, because it was pruned, comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftsweep.sweeps.protocol.trials import Terms, Trial, current

MARGIN = 1.25  # times the dearest whole trial
MOST_BLIND_TRIALS = 5  # that end early, or in failure, before any has run to its end and shown what a whole one costs


@dataclass(frozen=True)
class Budget:
    """Exactly one of the three is given. first_report: share of a full trial before which a trial tells nothing;
    most_open: tickets that wait or run at once, where a budget other than trials is shared out."""

    n_trials: int | None = None
    tokens: int | None = None
    gpu_seconds: float | None = None
    first_report: float = 0.1
    most_open: int = 1


def tickets_due(budget: Budget, trials: Sequence[Trial]) -> list[Terms]:
    """Tickets to be made now; none when the budget is spent or given out."""
    counted = [trial for trial in current(trials) if trial.terms.role == "trial"]
    if budget.n_trials is not None:
        return [Terms()] * max(0, budget.n_trials - len(counted))
    open_trials = [trial for trial in counted if not trial.is_finished]
    if len(open_trials) >= budget.most_open:
        return []
    allowance = _next_allowance(budget, counted)
    if allowance is None:
        return []
    is_tokens = budget.tokens is not None
    return [Terms(tokens=int(allowance) if is_tokens else None, seconds=None if is_tokens else allowance)]


def is_given_out(budget: Budget, trials: Sequence[Trial]) -> bool:
    """Whether no further ticket will ever be made, unless what is out comes back unspent."""
    counted = [trial for trial in current(trials) if trial.terms.role == "trial"]
    if budget.n_trials is not None:
        return len(counted) >= budget.n_trials
    return bool(counted) and all(trial.is_finished for trial in counted) and _next_allowance(budget, counted) is None


def _next_allowance(budget: Budget, counted: Sequence[Trial]) -> float | None:
    """What the next trial may spend, or None if that would be too little to learn anything from.

    How much a whole trial costs is known from those that ran to their end; before, one trial has the budget to itself.
    A little more than the dearest so far is allowed, as the next may be dearer, and would be cut just before its end.
    """
    limit = float(budget.tokens if budget.tokens is not None else budget.gpu_seconds or 0)
    whole = max((_spent(budget, trial) for trial in counted if trial.value is not None), default=None)
    open_trials = [trial for trial in counted if not trial.is_finished]
    if whole is None:  # all so far failed, or one still runs: wait for it, else go on with what is left, not for ever
        left = limit - sum(_spent(budget, trial) for trial in counted)
        return left if left > 0 and not open_trials and len(counted) < MOST_BLIND_TRIALS else None
    # One that ran out of memory at once has spent nothing, but costs what the shortest useful trial does.
    least = budget.first_report * whole
    left = limit - sum(max(least, _spent(budget, trial)) for trial in counted if trial.is_finished)
    for trial in open_trials:
        allowed = trial.terms.tokens if budget.tokens is not None else trial.terms.seconds
        left -= allowed or whole
    return None if left < least else min(MARGIN * whole, left)


def _spent(budget: Budget, trial: Trial) -> float:
    if trial.outcome is None:
        return 0.0
    return float(trial.outcome.tokens if budget.tokens is not None else trial.outcome.seconds)
