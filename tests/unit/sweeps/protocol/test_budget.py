"""Equal budgets: exactly as many trials, or as near to the tokens or seconds as a useful trial is small."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from peftsweep.records.space import CAPACITY, LR
from peftsweep.sweeps.protocol.budget import MARGIN, MOST_BLIND_TRIALS, Budget, is_given_out, is_short, tickets_due
from peftsweep.sweeps.protocol.trials import Ending, Outcome, Terms, Trial

MakeTrial = Callable[..., Trial]
FIRST_REPORT = 0.2


def spent(trial: Trial, amount: float, ending: Ending = Ending.FINISHED) -> Trial:
    """The trial, having cost so much of whatever is counted."""
    states = {Ending.FINISHED: TrialState.COMPLETE, Ending.PRUNED: TrialState.PRUNED, Ending.SPENT: TrialState.PRUNED}
    return replace(
        trial,
        state=states.get(ending, TrialState.FAIL),
        value=0.5 if ending is Ending.FINISHED else None,
        outcome=Outcome(ending, tokens=int(amount), seconds=float(amount)),
    )


WHOLE = Terms(whole=True)


def probe(trial: Trial, report: float, cost: float = 200) -> Trial:
    """The trial with its own learning rate, stopped at its first report."""
    params = {LR: trial.number * 1e-4, CAPACITY: 8}
    return replace(spent(trial, cost, Ending.PRUNED), params=params, reports={20: report})


def test_all_tickets_but_the_last_runs_are_due_at_once() -> None:
    assert tickets_due(Budget(n_trials=4), []) == [Terms()] * 3
    assert tickets_due(Budget(n_trials=10), []) == [Terms()] * 8


@pytest.mark.parametrize("ending", list(Ending))
def test_every_ticket_counts_however_it_ended(ending: Ending, trial: MakeTrial) -> None:
    trials = [trial(number, ending) for number in range(3)]
    assert tickets_due(Budget(n_trials=5), trials) == [Terms()]
    assert tickets_due(Budget(n_trials=4), trials) == [WHOLE]
    assert tickets_due(Budget(n_trials=3), trials) == []
    assert is_given_out(Budget(n_trials=3), trials)
    assert not is_given_out(Budget(n_trials=4), trials)


def test_the_last_runs_wait_for_all_that_is_open(trial: MakeTrial) -> None:
    budget, trials = Budget(n_trials=4), [trial(0), probe(trial(1), 0.3), trial(2, None)]
    assert tickets_due(budget, trials) == []
    assert not is_given_out(budget, trials)
    assert [terms.finish_of for terms in tickets_due(budget, [*trials[:2], probe(trial(2), 0.4)])] == [1]


def test_of_two_last_runs_one_finishes_the_best_probe_and_one_is_new(trial: MakeTrial) -> None:
    trials = [trial(0, reports={20: 1.0}), *(probe(trial(n), 1 / n) for n in range(1, 6))]
    budget = Budget(n_trials=8)
    (first,) = tickets_due(budget, trials)
    assert first == Terms(params=trials[5].params, whole=True, finish_of=5)
    assert tickets_due(budget, [*trials, trial(6, None, terms=first)]) == []
    finished = trial(6, value=0.4, params=trials[5].params, reports={20: 0.2}, terms=first)
    assert tickets_due(budget, [*trials, finished]) == [WHOLE]


def test_where_a_finishing_run_fails_the_next_best_probe_is_finished(trial: MakeTrial) -> None:
    trials = [trial(0, reports={20: 1.0}), *(probe(trial(n), 1 / n) for n in range(1, 6))]
    (first,) = tickets_due(Budget(n_trials=8), trials)
    failed = trial(6, Ending.CRASHED, params=trials[5].params, terms=first)
    assert [terms.finish_of for terms in tickets_due(Budget(n_trials=8), [*trials, failed])] == [4]


@pytest.mark.parametrize("budget", [Budget(tokens=2400, first_report=0.2), Budget(job_seconds=2450, first_report=0.2)])
def test_tokens_and_seconds_keep_a_whole_run_for_the_best_probe(budget: Budget, trial: MakeTrial) -> None:
    trials = [replace(spent(trial(0), 1000), reports={20: 1.0})]
    while not (due := tickets_due(budget, trials)[0]).whole:
        trials.append(probe(trial(len(trials), terms=due), 0.9 / len(trials)))
    assert len(trials) > 1
    assert due.finish_of == trials[-1].number
    assert (due.tokens or due.seconds or 0) >= 1000
    trials.append(replace(spent(trial(len(trials)), 1000), terms=due))
    assert is_given_out(budget, trials)


def test_a_retried_failure_does_not_count_twice(trial: MakeTrial) -> None:
    trials = [trial(0), trial(1, Ending.CRASHED), trial(2, terms=Terms(retry_of=1))]
    assert tickets_due(Budget(n_trials=2), trials) == []
    assert tickets_due(Budget(n_trials=4), trials) == [Terms()]


@pytest.mark.parametrize("kind", ["tokens", "seconds"])
def test_the_first_trial_has_the_budget_to_itself(kind: str, trial: MakeTrial) -> None:
    budget = Budget(tokens=1000) if kind == "tokens" else Budget(job_seconds=1000.0)
    assert getattr(tickets_due(budget, [])[0], kind) == 1000
    running = trial(0, None, terms=Terms(tokens=1000, seconds=1000.0))
    assert tickets_due(replace(budget, most_open=4), [running]) == []


def test_a_later_trial_may_cost_a_little_more_than_the_dearest(trial: MakeTrial) -> None:
    due = tickets_due(Budget(tokens=10_000), [spent(trial(0), 1000), spent(trial(1), 800)])
    assert due == [Terms(tokens=round(MARGIN * 1000))]


def test_a_probe_gets_no_more_than_leaves_a_whole_run(trial: MakeTrial) -> None:
    assert tickets_due(Budget(tokens=2300), [spent(trial(0), 1000)]) == [Terms(tokens=300)]


def test_what_pays_for_no_whole_run_is_left(trial: MakeTrial) -> None:
    budget = Budget(tokens=1999, first_report=FIRST_REPORT)
    assert tickets_due(budget, [spent(trial(0), 1000)]) == []
    assert is_given_out(budget, [spent(trial(0), 1000)])


def test_what_a_pruned_trial_leaves_is_given_again(trial: MakeTrial) -> None:
    whole = spent(trial(0), 1000)
    running = trial(1, None, terms=Terms(tokens=1000))
    budget = Budget(tokens=3000, most_open=2)
    assert tickets_due(budget, [whole, running]) == []
    pruned = spent(running, 250, Ending.PRUNED)
    assert tickets_due(budget, [whole, pruned]) == [Terms(tokens=750)]


def test_it_is_not_given_out_while_something_runs(trial: MakeTrial) -> None:
    running = trial(1, None, terms=Terms(tokens=1000))
    assert not is_given_out(Budget(tokens=2000), [spent(trial(0), 1000), running])


def test_no_more_tickets_are_open_than_workers(trial: MakeTrial) -> None:
    trials = [spent(trial(0), 100), trial(1, None), trial(2, None)]
    assert tickets_due(Budget(tokens=10_000, most_open=2), trials) == []
    assert len(tickets_due(Budget(tokens=10_000, most_open=3), trials)) == 1


def test_trials_that_run_out_of_memory_at_once_use_the_budget_up_too(trial: MakeTrial) -> None:
    budget, trials = Budget(tokens=3000, first_report=FIRST_REPORT), [spent(trial(0), 1000)]
    while tickets_due(budget, trials):
        trials.append(spent(trial(len(trials)), 0, Ending.OOM))
    assert len(trials) == 1 + 6  # 200 each, until a whole one can't be paid


def test_a_method_that_never_fits_is_not_tried_for_ever(trial: MakeTrial) -> None:
    budget, trials = Budget(tokens=2000), list[Trial]()
    while tickets_due(budget, trials):
        trials.append(spent(trial(len(trials)), 0, Ending.OOM))
    assert len(trials) == MOST_BLIND_TRIALS
    assert is_given_out(budget, trials)


class Study:
    """Workers, chance and a storage that is a list. What a trial costs is not known before it has run."""

    def __init__(self, make: MakeTrial, budget: Budget, seed: int) -> None:
        self.make, self.budget, self.random = make, budget, random.Random(seed)
        self.trials: list[Trial] = []

    def run(self) -> None:
        for _ in range(3000):
            self.trials += [
                self.make(len(self.trials) + i, None, terms=terms)
                for i, terms in enumerate(tickets_due(self.budget, self.trials))
            ]
            open_numbers = [trial.number for trial in self.trials if not trial.is_finished]
            if not open_numbers:
                assert is_given_out(self.budget, self.trials)
                return
            number = self.random.choice(open_numbers)
            self.trials[number] = self._end(self.trials[number])
        raise AssertionError("the study does not end")

    def _end(self, trial: Trial) -> Trial:
        cost = self.random.randint(700, 1000)
        events = ["whole"] * 4 + ["pruned"] * 4 + ["oom", "refused", "killed", "crashed at an end"]
        match self.random.choice(events) if trial.number else self.random.choice(["whole", "killed"]):
            case "killed":  # by SIGKILL, or with the whole sweep: it waits again, and nothing is counted
                return replace(trial, state=TrialState.WAITING, attempts=trial.attempts + 1)
            case "pruned":
                return self._charged(trial, cost * self.random.choice([FIRST_REPORT, 0.6]), Ending.PRUNED)
            case "oom":
                return self._charged(trial, self.random.choice([0, 100]), Ending.OOM)
            case "refused":
                return self._charged(trial, 0, Ending.REFUSED)
            case "whole":
                return self._charged(trial, cost, Ending.FINISHED)
            case _:
                return self._charged(trial, cost - 1, Ending.CRASHED)

    def _charged(self, trial: Trial, cost: float, ending: Ending) -> Trial:
        allowed = trial.terms.tokens or trial.terms.seconds
        assert allowed is not None
        return spent(trial, min(cost, allowed), Ending.SPENT if cost > allowed else ending)

    def spent(self) -> float:
        outcomes = [trial.outcome for trial in self.trials if trial.outcome]
        return sum(o.tokens if self.budget.tokens else o.seconds for o in outcomes)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), limit=st.integers(100, 20_000), workers=st.integers(1, 6), in_tokens=st.booleans())
def test_a_study_spends_its_budget_and_never_more(
    seed: int, limit: int, workers: int, in_tokens: bool, trial: MakeTrial
) -> None:
    budget = Budget(tokens=limit) if in_tokens else Budget(job_seconds=float(limit))
    study = Study(trial, replace(budget, first_report=FIRST_REPORT, most_open=workers), seed)
    study.run()
    assert study.spent() <= limit
    whole = max((t.outcome.tokens for t in study.trials if t.value is not None and t.outcome), default=None)
    if whole is not None:
        least = FIRST_REPORT * whole
        # What ran out of memory or failed at once is charged as the shortest useful trial.
        charged = sum(max(least, t.outcome.tokens) for t in study.trials if t.outcome)
        assert limit - charged < (1 if in_tokens else MARGIN) * whole


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), n_trials=st.integers(1, 30))
def test_a_study_runs_exactly_its_number_of_trials(seed: int, n_trials: int, trial: MakeTrial) -> None:
    chance, trials = random.Random(seed), list[Trial]()
    while not is_given_out(Budget(n_trials=n_trials), trials) or any(not t.is_finished for t in trials):
        trials += [trial(len(trials) + i, None) for i, _ in enumerate(tickets_due(Budget(n_trials), trials))]
        number = chance.choice([t.number for t in trials if not t.is_finished])
        if chance.random() < 0.8:  # else killed, and it waits again
            trials[number] = trial(number, chance.choice(list(Ending)))
    assert len(trials) == n_trials


@pytest.mark.parametrize(
    ("budget", "short"),
    [
        (Budget(n_trials=11), True),
        (Budget(n_trials=12), False),
        (Budget(tokens=4999), True),
        (Budget(tokens=5000), False),
        (Budget(job_seconds=4999.0), True),
        (Budget(job_seconds=5000.0), False),
    ],
)
def test_a_short_budget_is_a_few_trials_or_what_some_whole_ones_cost(
    budget: Budget, short: bool, trial: MakeTrial
) -> None:
    assert is_short(budget, [spent(trial(0), 1000), spent(trial(1), 200, Ending.PRUNED)]) is short


def test_a_budget_counts_as_short_until_the_cost_of_a_trial_is_known(trial: MakeTrial) -> None:
    assert is_short(Budget(tokens=10**9), [trial(0, None)])
