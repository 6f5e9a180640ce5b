"""How near a study comes to the best settings that there are: a simulation, to choose defaults.

python tests/bench/bench_sampler.py                     on the measured grid: numbers of trials, shares of its tokens
python tests/bench/bench_sampler.py --displaced 0.5     with published rates that are off by up to half a decade more
python tests/bench/bench_sampler.py --surfaces          on formulas, 20 trials, beside Optuna's own samplers

Nothing is trained. A trial's losses are read off the table that sweep_grid.py measured, between its learning rates by
a monotone curve, which has no minimum below the measured ones, and between its steps on a line (both logarithmic).
Tickets, proposals, pruning and last runs are the protocol's. Regret is how far the loss of the best finished trial is
above the best of the grid, in percent and in standard deviations between seeds near the best. `one knob` is the same
method with its best capacity given: what a second knob costs at equal trials.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import random
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy.interpolate import PchipInterpolator

sys.path.insert(0, str(Path(__file__).parents[1]))
from simulated_study import Procedure, SimulatedStudy, Surface
from surfaces import SURFACES, Synthetic
from sweep_grid import TABLE

from peftsweep.records.space import CAPACITY, LR, Dimension, Space, defaults_of, values
from peftsweep.sweeps.protocol.budget import Budget

TOKEN_SHARES = (0.13, 0.2)
TRIALS = (6, 8, 10)
DEFAULTS: dict[
    str, tuple[int | None, float]
] = {  # published: capacity, and rate times the lr_scale of the embedded model
    "lora": (32, 1e-3),
    "lily": (140, 1e-3),
    "oft": (32, 1e-3),
    "p-tuning": (20, 1e-2),
    "miss": (64, 1e-3),
    "c3a": (64, 3.0),
    "ia3": (None, 1e-2),
    "full": (None, 1e-4),
}


class Grid:
    """The measured losses of one method, readable at any learning rate and step."""

    def __init__(self, rows: Sequence[Mapping[str, str]]) -> None:
        self.name = rows[0]["method"]
        curves: dict[tuple[str, int], dict[float, float]] = defaultdict(dict)
        final: dict[tuple[str, float], list[float]] = defaultdict(list)
        self.last_step = max(int(row["step"]) for row in rows)
        for row in rows:
            loss, rate, step = math.log(float(row["valid_loss"])), float(row["lr"]), int(row["step"])
            if row["seed"] == "0":
                curves[row["capacity"], step][rate] = loss
            if step == self.last_step:
                final[row["capacity"], rate].append(loss)
        self.steps = sorted({step for _, step in curves})
        truth = {key: float(np.mean(losses)) for key, losses in final.items()}
        self.log_best, (self.best_capacity, _) = min((loss, key) for key, loss in truth.items())
        repeated = [np.var(losses, ddof=1) for losses in final.values() if len(losses) > 1]
        self.sd = math.sqrt(np.mean(repeated)) if repeated else math.nan
        self.points = len(final)
        self._curves = {key: _monotone(found) for key, found in curves.items()}
        self._truth = {
            capacity: _monotone({rate: loss for (held, rate), loss in truth.items() if held == capacity})
            for capacity, _ in truth
        }
        rates = sorted({rate for found in curves.values() for rate in found})
        capacity, rate = DEFAULTS[self.name]
        self.space: Space = (Dimension(LR, rates[0], rates[-1], log=True, default=rate),)
        if capacity is not None:
            choices = tuple(sorted({int(found) for found, _ in curves}))
            self.space += (Dimension(CAPACITY, choices=choices, default=capacity),)

    def loss(self, params: Mapping[str, Any], step: int) -> float:
        """What a trial sees: that of seed 0."""
        losses = [float(self._curves[self._capacity(params), known](math.log(params[LR]))) for known in self.steps]
        return math.exp(float(np.interp(math.log(step), np.log(self.steps), losses)))

    def regret(self, params: Mapping[str, Any]) -> float:
        """By the mean over the seeds, where there are several: near the optima."""
        return math.exp(float(self._truth[self._capacity(params)](math.log(params[LR]))) - self.log_best) - 1

    def _capacity(self, params: Mapping[str, Any]) -> str:
        return str(params.get(CAPACITY, self.best_capacity))


def _monotone(losses: Mapping[float, float]) -> PchipInterpolator:
    """Learning rate -> loss as a curve over log(rate)."""
    rates = sorted(losses)
    return PchipInterpolator(np.log(rates), [losses[rate] for rate in rates])


class Displaced:
    """A surface with its published rate off by up to so many decades, and for a grid of one knob without the other."""

    def __init__(self, surface: Any, decades: float, seed: int, one_knob: bool = False) -> None:
        self.surface, self.last_step = surface, surface.last_step
        rate, *others = surface.space
        low, high = rate.ends
        off = rate.default * 10 ** random.Random(f"{surface.name} {seed}").uniform(-decades, decades)
        rate = dataclasses.replace(rate, default=min(max(float(f"{off:.4g}"), low), high))
        self.space: Space = (rate, *([] if one_knob else others))

    def loss(self, params: Mapping[str, Any], step: int) -> float:
        return float(self.surface.loss(params, step))

    def regret(self, params: Mapping[str, Any]) -> float:
        return float(self.surface.regret(params))


def read_grids(table: Path) -> list[Grid]:
    rows = defaultdict(list)
    with table.open() as stream:
        for row in csv.DictReader(stream):
            rows[row["method"]].append(row)
    return [Grid(found) for found in rows.values()]


def measure_grids(grids: Sequence[Grid], options: argparse.Namespace) -> None:
    """A line for each budget: of each method median and 90th percentile in percent, and median in deviations."""
    print(f"{'':<20}" + "".join(f"| {grid.name + ': median p90 SDs':<24}" for grid in grids))
    budgets: list[tuple[str, Callable[[Grid], Budget], bool]] = []
    for count in options.trials or TRIALS:
        for one_knob in (False, True):
            name = f"{count} trials{', one knob' * one_knob}"
            budgets.append((name, lambda _, count=count: Budget(n_trials=count), one_knob))  # type: ignore[misc]
    for share in TOKEN_SHARES:
        steps = lambda grid, share=share: int(share * grid.points * grid.last_step)  # noqa: E731
        budgets.append((f"{share:.0%} of tokens", lambda grid, steps=steps: Budget(tokens=steps(grid)), False))  # type: ignore[misc]
    for name, budget_of, one_knob in budgets:
        line, regrets = f"{name:<20}", []
        for grid in grids:
            surfaces = [Displaced(grid, options.displaced, seed, one_knob) for seed in range(options.seeds)]
            found = np.array([run(surface, budget_of(grid), seed, options) for seed, surface in enumerate(surfaces)])
            median, p90 = np.quantile(found, [0.5, 0.9])
            line += f"| {median:7.1%} {p90:7.1%} {math.log1p(median) / grid.sd:6.1f}  "
            regrets.append(found)
        print(f"{line}| mean {np.mean(regrets):6.1%}  p90 {np.quantile(regrets, 0.9):6.1%}", flush=True)


def run(surface: Surface, budget: Budget, seed: int, options: argparse.Namespace) -> float:
    procedure = Procedure(options.sampler, options.pruner)
    return SimulatedStudy(surface, procedure, budget, seed).run(options.workers).regret


def measure_surfaces(options: argparse.Namespace) -> None:
    """The median regret after 20 trials of the procedure and of Optuna's samplers by themselves, without pruning."""
    print(f"{'':<20}" + "".join(f"| {surface.name:<18}" for surface in SURFACES))
    for name in ("fair", "GPSampler", "TPESampler", "RandomSampler"):
        line = f"{name:<20}"
        for surface in SURFACES:
            lucks = [dataclasses.replace(surface, seed=seed) for seed in range(options.seeds)]
            if name == "fair":
                found = [run(luck, Budget(n_trials=20), luck.seed, options) for luck in lucks]
            else:
                found = [run_optuna(name, luck) for luck in lucks]
            line += f"| {np.median(found):7.1%} {np.quantile(found, 0.9):8.1%}  "
        print(line, flush=True)


def run_optuna(sampler: str, surface: Synthetic, trials: int = 20) -> float:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=getattr(optuna.samplers, sampler)(seed=surface.seed))
    distributions = {dimension.key: dimension.coordinate_distribution() for dimension in surface.space}
    default = defaults_of(surface.space)
    study.enqueue_trial({dimension.key: dimension.to_coordinate(default[dimension.key]) for dimension in surface.space})
    tried = []
    for _ in range(trials):
        trial = study.ask(distributions)
        params = values(surface.space, trial.params)
        tried.append((surface.loss(params, surface.last_step), params))
        study.tell(trial, math.log(tried[-1][0]))
    return surface.regret(min(tried, key=lambda pair: pair[0])[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--trials", type=int, nargs="*", help="numbers of trials instead of 6, 8 and 10")
    parser.add_argument("--displaced", type=float, default=0.0, help="decades that the published rate is off at most")
    parser.add_argument("--sampler", default="gp")
    parser.add_argument("--pruner", default="successive_halving")
    parser.add_argument("--surfaces", action="store_true", help="formulas instead of the grid")
    options = parser.parse_args()
    if options.surfaces:
        measure_surfaces(options)
    else:
        measure_grids(read_grids(options.table), options)


if __name__ == "__main__":
    main()
