"""Which trial that was stopped early deserves to be finished: only a trial that ran to its end can win a study.

Probes are there to be compared, and the best of them is often truly better than all that was finished. So the last runs
of a budget are kept for it: it runs again from its first step, with the same seed, and to its end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from optuna.trial import TrialState

from peftsweep.sweeps.protocol.expectation import losses_of
from peftsweep.sweeps.protocol.trials import Trial, current, observations


def worth_finishing(trials: Sequence[Trial], direction: str) -> Trial | None:
    """The unfinished trial with the lowest expected loss, if that is below the best finished one; None otherwise.

    Trials that broke a limit are left out, as neither kind can win. What was tried to be finished once is not again.
    """
    judged = [trial for trial in current(trials) if trial.is_result and trial.params]
    losses = losses_of(observations(judged), direction)
    known = [
        (loss, trial)
        for trial, loss in zip(judged, losses, strict=True)
        if loss is not None and all(excess <= 0 for excess in trial.constraints.values())
    ]
    best = min((loss for loss, trial in known if trial.value is not None), default=math.inf)
    run_whole = [trial.params for trial in current(trials) if trial.value is not None or trial.terms.whole]
    promising = [
        (loss, trial)
        for loss, trial in known
        if trial.state is TrialState.PRUNED and trial.reports and trial.params not in run_whole and loss < best
    ]
    return min(promising, key=lambda pair: pair[0], default=(best, None))[1]
