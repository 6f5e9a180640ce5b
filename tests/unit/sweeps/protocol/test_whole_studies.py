"""Whole studies on surfaces whose best is known: tickets, proposals, pruning and last runs together."""

from __future__ import annotations

import dataclasses

import pytest
from simulated_study import Procedure, SimulatedStudy
from surfaces import SURFACES, Synthetic

from peftsweep.records.space import CAPACITY, LR
from peftsweep.sweeps.protocol.budget import Budget
from peftsweep.sweeps.protocol.finishing import worth_finishing

BY_NAME = {surface.name: surface for surface in SURFACES}


def studied(surface: Synthetic, budget: Budget, seed: int = 0, workers: int = 1, **prior: float) -> SimulatedStudy:
    centre = {LR: prior["rate"], CAPACITY: prior["capacity"]} if prior else None
    return SimulatedStudy(dataclasses.replace(surface, seed=seed), Procedure(), budget, seed, centre).run(workers)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "budget", [Budget(n_trials=4), Budget(n_trials=7), Budget(tokens=150)], ids=["4 trials", "7 trials", "tokens"]
)
def test_no_study_ends_with_an_unfinished_trial_that_looks_better(budget: Budget, workers: int) -> None:
    study = studied(BY_NAME["bowl"], budget, workers=workers)
    assert worth_finishing(study.trials, "minimize") is None


@pytest.mark.parametrize("seed", range(3))
def test_seven_trials_beat_a_default_that_is_off(seed: int) -> None:
    study = studied(BY_NAME["bowl"], Budget(n_trials=7), seed)
    assert study.surface.regret(study.trials[0].params) > 0.5
    assert study.regret < 0.15


def test_a_good_prior_spares_trials() -> None:
    bowl, budget = BY_NAME["bowl"], Budget(n_trials=4)
    assert studied(bowl, budget, rate=10**-2.3, capacity=64).regret < 0.5 * studied(bowl, budget).regret


def test_the_same_budget_costs_every_surface_the_same_trials() -> None:
    assert {len(studied(surface, Budget(n_trials=5)).trials) for surface in SURFACES} == {5}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["misleading default", "optimum at an end"])
def test_twenty_trials_are_not_locked_out_of_the_best(name: str) -> None:
    assert sorted(studied(BY_NAME[name], Budget(n_trials=20), seed).regret for seed in range(3))[1] < 0.1
