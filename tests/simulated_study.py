"""A study whose trials take no time: the protocol's own tickets, proposals and pruning, on a surface of losses.

What differs from a sweep is what runs a trial: here its losses are read off a function.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from peftsweep.records.space import Space, defaults_of
from peftsweep.sweeps.execution.storage import storage_id
from peftsweep.sweeps.protocol.budget import Budget, is_short, tickets_due
from peftsweep.sweeps.protocol.pruning import BOOTSTRAP_COUNT, report_steps, should_prune
from peftsweep.sweeps.protocol.search import propose
from peftsweep.sweeps.protocol.trials import Ending, Outcome, Terms, Trial, observations


class Surface(Protocol):
    """What a method's losses are. The space has defaults; regret: how far the final loss of some settings is above the
    best of the space, as a share of it."""

    @property
    def space(self) -> Space: ...
    @property
    def last_step(self) -> int: ...
    def loss(self, params: Mapping[str, Any], step: int) -> float: ...
    def regret(self, params: Mapping[str, Any]) -> float: ...


@dataclass(frozen=True)
class Procedure:
    sampler: str = "gp"
    pruner: str = "successive_halving"
    sampler_kwargs: Mapping[str, Any] = field(default_factory=dict)
    pruner_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        given = [f"{key}={value}" for key, value in {**self.sampler_kwargs, **self.pruner_kwargs}.items()]
        return " ".join([self.sampler, self.pruner, *given])


class SimulatedStudy:
    """One study, by a queue of workers in the order in which they reach their next report. A token is a step."""

    def __init__(self, surface: Surface, procedure: Procedure, budget: Budget, seed: int, prior: Any = None) -> None:
        self.surface, self.procedure, self.seed, self.prior = surface, procedure, seed, prior
        kwargs = dict(procedure.pruner_kwargs)
        if procedure.pruner == "successive_halving" and budget.n_trials is not None:  # as SweepSpec.pruner_kwargs
            kwargs = {"bootstrap_count": min(BOOTSTRAP_COUNT, budget.n_trials // 2)} | kwargs
        self.pruner_kwargs = kwargs
        reports = report_steps(surface.last_step, procedure.pruner, kwargs)
        self.stops = [*reports, surface.last_step]
        self.budget = replace(budget, first_report=self.stops[0] / surface.last_step)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.storage = optuna.create_study()  # what the pruner reads
        self.trials: list[Trial] = []

    def run(self, workers: int = 1) -> SimulatedStudy:
        self.budget = replace(self.budget, most_open=workers)
        self._add(Terms(params=defaults_of(self.surface.space) or None, tokens=self.budget.tokens))
        queue: list[tuple[int, int]] = []
        while True:
            for terms in tickets_due(self.budget, self.trials):
                self._add(terms)
            waiting = [trial.number for trial in self.trials if trial.state is TrialState.WAITING]
            clock = queue[0][0] if queue else 0
            for number in waiting[: workers - len(queue)]:
                self._begin(number)
                heapq.heappush(queue, (clock + self._advance(number), number))
            if not queue:
                return self
            clock, number = heapq.heappop(queue)
            if self._goes_on(number):
                heapq.heappush(queue, (clock + self._advance(number), number))

    @property
    def regret(self) -> float:
        """How far the best finished trial is above the best of the space, as a share of it."""
        found = min(self.trials, key=lambda trial: float("inf") if trial.value is None else trial.value)
        return self.surface.regret(found.params)

    @property
    def steps(self) -> int:
        return sum(max(trial.reports, default=0) for trial in self.trials)

    def _add(self, terms: Terms) -> None:
        self.storage.ask()
        number = len(self.trials)
        self.trials.append(
            Trial(number, number, TrialState.WAITING, terms, {}, {}, None, None, None, None, 0, None, {}, None)
        )

    def _begin(self, number: int) -> None:
        trial = self.trials[number]
        params = trial.terms.params or propose(
            self.surface.space,
            observations(self.trials),
            sampler=self.procedure.sampler,
            kwargs=self.procedure.sampler_kwargs,
            seed=1000 * self.seed + number,
            direction="minimize",
            centre=self.prior or (defaults_of(self.surface.space) if is_short(self.budget, self.trials) else None),
        )
        self.trials[number] = replace(trial, params=params, state=TrialState.RUNNING)

    def _advance(self, number: int) -> int:
        """To the next report, or as far as its tokens reach; answers how many steps that took."""
        trial = self.trials[number]
        at = max(trial.reports, default=0)
        step = next(stop for stop in self.stops if stop > at)
        if trial.terms.tokens is not None and trial.terms.tokens < step:
            self._end(number, Ending.SPENT, trial.terms.tokens)
            return trial.terms.tokens - at
        reports = {**trial.reports, step: self.surface.loss(trial.params, step)}
        self.trials[number] = replace(trial, reports=reports)
        return step - at

    def _goes_on(self, number: int) -> bool:
        trial = self.trials[number]
        if trial.is_finished:
            return False
        step = max(trial.reports)
        if step == self.surface.last_step:
            self._end(number, Ending.FINISHED, step, trial.reports[step])
            return False
        stored = optuna.trial.Trial(self.storage, storage_id(self.storage.trials[number]))
        stored.report(trial.reports[step], step)
        procedure, last_step = self.procedure, self.surface.last_step
        if not trial.terms.whole and should_prune(
            self.storage,
            self.storage.trials[number],
            pruner=procedure.pruner,
            kwargs=self.pruner_kwargs,
            max_steps=last_step,
        ):
            self._end(number, Ending.PRUNED, step)
        return not self.trials[number].is_finished

    def _end(self, number: int, ending: Ending, tokens: int, value: float | None = None) -> None:
        state = TrialState.COMPLETE if ending is Ending.FINISHED else TrialState.PRUNED
        self.trials[number] = replace(
            self.trials[number], state=state, value=value, outcome=Outcome(ending, tokens=tokens)
        )
        self.storage.tell(number, value, state=state)
