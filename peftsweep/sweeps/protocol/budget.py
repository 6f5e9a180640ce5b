"""How many more trials a study may start: trials, training tokens or seconds, counted in its storage alone.

Only the controller asks, so that nobody else makes tickets at the same time. What runs or waits is counted as if it
ran to its end; what it does not spend, because it was pruned, comes back. The last runs of each budget are whole ones,
for the most promising of the trials that were stopped early: see finishing.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from peftsweep.sweeps.protocol.finishing import worth_finishing
from peftsweep.sweeps.protocol.trials import Terms, Trial, current

MARGIN = 1.25  # times the dearest whole trial
MOST_BLIND_TRIALS = 5  # that end early, or in failure, before any has run to its end and shown what a whole one costs
# For each so many trials, or what so many whole ones cost, one whole run at the end, and one at least.
TRIALS_A_LAST_RUN, WHOLES_A_LAST_RUN = 4, 2.5
# The largest budget that is spent around the published settings, as it can't search the whole space.
SHORT_TRIALS, SHORT_WHOLES = 11, 5.0


@dataclass(frozen=True)
class Budget:
    """Exactly one of the first three is given. first_report: share of a full trial before which a trial tells nothing;
    most_open: tickets that wait or run at once, where a budget other than trials is shared out; direction: minimize or
    maximize, of the objective."""

    n_trials: int | None = None
    tokens: int | None = None
    job_seconds: float | None = None
    first_report: float = 0.1
    most_open: int = 1
    direction: str = "minimize"


def tickets_due(budget: Budget, trials: Sequence[Trial]) -> list[Terms]:
    """Tickets to be made now; none when the budget is spent or given out, or its last runs wait for what is open."""
    counted = [trial for trial in current(trials) if trial.terms.role == "trial"]
    open_count = sum(not trial.is_finished for trial in counted)
    if budget.n_trials is not None:
        left = budget.n_trials - len(counted)
        before_last = left - max(1, budget.n_trials // TRIALS_A_LAST_RUN)
        if before_last > 0:
            return [Terms()] * before_last
        return [_last_run(budget, trials)] if left > 0 and not open_count else []
    due = None if open_count >= budget.most_open else _next_paid(budget, counted)
    return [] if due is None else [due]


def is_given_out(budget: Budget, trials: Sequence[Trial]) -> bool:
    """Whether no further ticket will ever be made, unless what is out comes back unspent."""
    counted = [trial for trial in current(trials) if trial.terms.role == "trial"]
    if budget.n_trials is not None:
        return len(counted) >= budget.n_trials
    return bool(counted) and all(trial.is_finished for trial in counted) and _next_paid(budget, counted) is None


def is_short(budget: Budget, trials: Sequence[Trial]) -> bool:
    """Whether the budget is too small to search more than the neighbourhood of what is known to work; True while the
    cost of a whole trial is not known."""
    if budget.n_trials is not None:
        return budget.n_trials <= SHORT_TRIALS
    whole = _dearest_whole(budget, trials)
    return whole is None or _limit(budget) < SHORT_WHOLES * whole


def _last_run(budget: Budget, trials: Sequence[Trial]) -> Terms:
    """The best unfinished trial again, where it promises to be the best of all; else a new one. Either is not pruned:
    nobody would be left to finish it."""
    found = worth_finishing(trials, budget.direction)
    return Terms(whole=True) if found is None else Terms(params=found.params, whole=True, finish_of=found.number)


def _next_paid(budget: Budget, counted: Sequence[Trial]) -> Terms | None:
    """The next trial and what it may spend; None if what is left pays for none that tells anything.

    How much a whole trial costs is known from those that ran to their end; before, one trial has the budget to itself.
    A little more than the dearest so far is allowed, as the next may be dearer, and would be cut just before its end.
    """
    limit, whole = _limit(budget), _dearest_whole(budget, counted)
    open_trials = [trial for trial in counted if not trial.is_finished]
    if whole is None:  # all so far failed, or one still runs: wait for it, else go on with what is left, not for ever
        left = limit - sum(_spent(budget, trial) for trial in counted)
        return (
            _paid(budget, Terms(), left) if left > 0 and not open_trials and len(counted) < MOST_BLIND_TRIALS else None
        )
    # One that ran out of memory at once has spent nothing, but costs what the shortest useful trial does.
    least = budget.first_report * whole
    left = limit - sum(max(least, _spent(budget, trial)) for trial in counted if trial.is_finished)
    for trial in open_trials:
        allowed = trial.terms.tokens if budget.tokens is not None else trial.terms.seconds
        left -= allowed or whole
    last_runs = int(limit / (WHOLES_A_LAST_RUN * whole)) - sum(trial.terms.whole for trial in counted)
    # The same number of steps takes the same tokens, but not the same time.
    last_cost = whole if budget.tokens is not None else MARGIN * whole
    spare = left - max(1, last_runs) * last_cost
    if spare >= least:
        return _paid(budget, Terms(), min(MARGIN * whole, spare))
    if open_trials or left < last_cost:
        return None
    return _paid(budget, _last_run(budget, counted), min(MARGIN * whole, left))


def _paid(budget: Budget, terms: Terms, allowance: float) -> Terms:
    is_tokens = budget.tokens is not None
    return replace(terms, tokens=int(allowance) if is_tokens else None, seconds=None if is_tokens else allowance)


def _limit(budget: Budget) -> float:
    return float(budget.tokens if budget.tokens is not None else budget.job_seconds or 0)


def _dearest_whole(budget: Budget, trials: Sequence[Trial]) -> float | None:
    return max((_spent(budget, trial) for trial in trials if trial.value is not None), default=None)


def _spent(budget: Budget, trial: Trial) -> float:
    if trial.outcome is None:
        return 0.0
    return float(trial.outcome.tokens if budget.tokens is not None else trial.outcome.seconds)
