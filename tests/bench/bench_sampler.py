"""Which sampler and pruner find the best of a grid for a fifth of its tokens: a simulation, to choose defaults.

python tests/bench/bench_sampler.py --seeds 20
python tests/bench/bench_sampler.py --table TABLE.csv --only 'gp' --trials 12

Nothing is trained. A trial's losses are read off the table that sweep_grid.py measured, between its learning rates by
a monotone curve, which has no minimum below the measured ones, and between its steps on a line (both logarithmic). The
first trial is the published default and runs to its end. One that can't be paid to its end is cut and does not count.
`p90` is the 90th percentile over seeds, `hit` the share of seeds within 1% of the grid's best.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy.interpolate import PchipInterpolator

from peftsweep.records.space import CAPACITY, LR, Dimension, Space
from peftsweep.sweeps.execution.storage import storage_id
from peftsweep.sweeps.protocol.pruning import report_steps, should_prune
from peftsweep.sweeps.protocol.search import Observation, propose

TABLE = Path(__file__).with_name("sweep_grid.csv")
TOKEN_SHARE = 0.2
DEFAULTS = {"lora": (32, 1e-3), "lily": (140, 1e-3), "oft": (32, 1e-3), "p-tuning": (20, 1e-2)}


@dataclass(frozen=True)
class Setup:
    sampler: str
    pruner: str
    sampler_kwargs: Mapping[str, Any] = field(default_factory=dict)
    pruner_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        given = [f"{key}={value}" for key, value in {**self.sampler_kwargs, **self.pruner_kwargs}.items()]
        return " ".join([self.sampler, self.pruner, *given])


def halving(first: int, factor: int, bootstrap: int) -> dict[str, int]:
    return {"min_resource": first, "reduction_factor": factor, "bootstrap_count": bootstrap}


SETUPS = (
    *(Setup(sampler, "successive_halving") for sampler in ("gp", "tpe", "random")),
    Setup("gp", "successive_halving", {"n_startup_trials": 4}, {"bootstrap_count": 4}),
    Setup("gp", "successive_halving", {"n_startup_trials": 5}, {"bootstrap_count": 5}),
    *(Setup("gp", "successive_halving", {}, {"min_resource": first}) for first in (6, 17)),
    *(Setup("gp", "successive_halving", {}, {"reduction_factor": factor}) for factor in (2, 4)),
    Setup("gp", "successive_halving", {}, halving(6, 3, 0)),
    *(Setup("gp", pruner) for pruner in ("median", "none")),
    *(Setup("random", pruner) for pruner in ("median", "none")),
)


class Curves:
    """The measured losses of one method, readable at any learning rate and step."""

    def __init__(self, rows: Sequence[Mapping[str, str]]) -> None:
        losses: dict[tuple[int, int], dict[float, float]] = defaultdict(dict)
        for row in rows:
            losses[int(row["capacity"]), int(row["step"])][float(row["lr"])] = float(row["valid_loss"])
        self.method = rows[0]["method"]
        self.capacities = tuple(sorted({capacity for capacity, _ in losses}))
        self.steps = sorted({step for _, step in losses})
        self.rates = sorted({rate for by_rate in losses.values() for rate in by_rate})
        self._curves = {key: _curve(by_rate) for key, by_rate in losses.items()}
        self.last_step = self.steps[-1]
        self.best = min(
            loss for (_, step), by_rate in losses.items() if step == self.last_step for loss in by_rate.values()
        )
        self.grid_points = sum(len(by_rate) for (_, step), by_rate in losses.items() if step == self.last_step)

    @property
    def space(self) -> Space:
        rates = Dimension(LR, low=self.rates[0], high=self.rates[-1], log=True)
        return (rates, Dimension(CAPACITY, choices=self.capacities, default=DEFAULTS[self.method][0]))

    def loss(self, params: Mapping[str, Any], step: int) -> float:
        logs = [float(self._curves[params[CAPACITY], known](math.log(params[LR]))) for known in self.steps]
        return math.exp(np.interp(math.log(step), np.log(self.steps), logs))


def _curve(by_rate: Mapping[float, float]) -> PchipInterpolator:
    rates = sorted(by_rate)
    return PchipInterpolator(np.log(rates), [math.log(by_rate[rate]) for rate in rates])


def read_curves(table: Path) -> list[Curves]:
    rows = defaultdict(list)
    with table.open() as stream:
        for row in csv.DictReader(stream):
            rows[row["method"]].append(row)
    return [Curves(found) for found in rows.values()]


@dataclass
class Running:
    number: int
    params: dict[str, Any]
    reports: dict[int, float] = field(default_factory=dict)


class Simulation:
    """One study on the table: a queue of workers by the time at which each reaches its next report."""

    def __init__(self, curves: Curves, setup: Setup, seed: int, budget_steps: float, max_trials: float) -> None:
        self.curves, self.setup, self.seed = curves, setup, seed
        self.left, self.max_trials = budget_steps, max_trials
        kwargs = setup.pruner_kwargs
        self.stops = [*report_steps(curves.last_step, setup.pruner, kwargs), curves.last_step]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study()
        self.seen: dict[int, Observation] = {}

    def run(self, workers: int) -> float:
        """The best loss found, relative to the grid's best."""
        queue: list[tuple[float, int, Running]] = []
        for _ in range(workers):
            self._start(queue, 0.0)
        while queue:
            clock, _, trial = heapq.heappop(queue)
            if self._at_report(trial):
                self._advance(queue, clock, trial)
            else:
                self._start(queue, clock)
        return min(seen.value for seen in self.seen.values() if seen.value is not None) / self.curves.best - 1

    def _start(self, queue: list[tuple[float, int, Running]], clock: float) -> None:
        number = len(self.seen)
        if number >= self.max_trials or self.left < self.stops[0]:
            return
        trial = Running(number, self._settings(number))
        self.study.ask()
        self.seen[number] = Observation(trial.params, "running")
        self._advance(queue, clock, trial)

    def _settings(self, number: int) -> dict[str, Any]:
        if number == 0:
            capacity, rate = DEFAULTS[self.curves.method]
            return {LR: rate, CAPACITY: capacity}
        seed = 1000 * self.seed + number
        sampler, kwargs, seen = self.setup.sampler, self.setup.sampler_kwargs, list(self.seen.values())
        return propose(self.curves.space, seen, sampler=sampler, kwargs=kwargs, seed=seed, direction="minimize")

    def _advance(self, queue: list[tuple[float, int, Running]], clock: float, trial: Running) -> None:
        at = max(trial.reports, default=0)
        step = next(stop for stop in self.stops if stop > at)
        if self.left < step - at:
            self.seen[trial.number] = Observation(trial.params, "failed")
            return
        self.left -= step - at
        trial.reports[step] = self.curves.loss(trial.params, step)
        heapq.heappush(queue, (clock + step - at, trial.number, trial))

    def _at_report(self, trial: Running) -> bool:
        """Whether the trial goes on."""
        step = max(trial.reports)
        if step == self.curves.last_step:
            self._finish(trial, "ok", trial.reports[step])
            return False
        optuna.trial.Trial(self.study, storage_id(self.study.trials[trial.number])).report(trial.reports[step], step)
        stored = self.study.trials[trial.number]
        setup, last_step = self.setup, self.curves.last_step
        if should_prune(self.study, stored, pruner=setup.pruner, kwargs=setup.pruner_kwargs, max_steps=last_step):
            self._finish(trial, "pruned", None)
            return False
        return True

    def _finish(self, trial: Running, state: str, value: float | None) -> None:
        self.seen[trial.number] = Observation(trial.params, state, value, dict(trial.reports))
        outcome = optuna.trial.TrialState.COMPLETE if state == "ok" else optuna.trial.TrialState.PRUNED
        self.study.tell(trial.number, value, state=outcome)


@dataclass(frozen=True)
class Summary:
    median: float
    p90: float
    hit: float
    trials: float
    token_share: float

    def __str__(self) -> str:
        return f"{self.median:6.1%} {self.p90:6.1%} {self.hit:4.0%} {self.trials:4.1f} {self.token_share:4.0%}"


def summarise(curves: Curves, setup: Setup, options: argparse.Namespace) -> Summary:
    grid_steps = curves.grid_points * curves.last_step
    budget = math.inf if options.trials else TOKEN_SHARE * grid_steps
    runs = [Simulation(curves, setup, seed, budget, options.trials or math.inf) for seed in range(options.seeds)]
    excess = np.array([run.run(options.workers) for run in runs])
    spent = [_steps_of(run) / grid_steps for run in runs]
    trials = np.mean([len(run.seen) for run in runs])
    return Summary(
        float(np.median(excess)),
        float(np.quantile(excess, 0.9)),
        float(np.mean(excess <= 0.01)),
        float(trials),
        float(np.mean(spent)),
    )


def _steps_of(run: Simulation) -> int:
    return sum(max(seen.reports, default=0) for seen in run.seen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--trials", type=int, default=0, help="a budget of trials instead of tokens")
    parser.add_argument("--only", default="", help="setups whose name matches this pattern")
    options = parser.parse_args()
    curves = read_curves(options.table)
    columns = f"{'median':>6} {'p90':>6} {'hit':>4} {'n':>4} {'cost':>4}"
    print(f"{'setup':<52}" + "   ".join(f"{found.method + ': ' + columns:<40}" for found in curves))
    for setup in SETUPS:
        if re.search(options.only, setup.name):
            rows = [f"{found.method}: {summarise(found, setup, options)}" for found in curves]
            print(f"{setup.name:<52}" + "   ".join(f"{row:<40}" for row in rows), flush=True)


if __name__ == "__main__":
    main()
