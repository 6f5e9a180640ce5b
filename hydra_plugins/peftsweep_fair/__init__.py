"""The door through which Hydra finds the fair sweeper. Hydra imports this at every start: nothing heavy here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class FairSweeper(Sweeper):
    """`hydra/sweeper=fair`: one Optuna study for each method, equal budgets, best settings confirmed on test data."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> Any:
        """Specify and run the sweep. `arguments` are the overrides as typed, Hydra's own left out."""
        from peftsweep.sweeps.start import start_from_hydra

        assert self.hydra_context is not None
        assert self.config is not None
        return start_from_hydra(arguments, self.settings, self.hydra_context, self.config)


class LocalLauncher(Launcher):
    """`hydra/launcher=local`: says where workers run; the sweep itself starts and watches them."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Raises ConfigError: a plain grid was asked for."""
        from peftsweep.errors import ConfigError, Problem

        rule = "hydra/launcher=local starts the workers of a fair sweep"
        raise ConfigError(Problem(rule, fix="Add hydra/sweeper=fair, or use hydra/launcher=joblib for a plain grid."))
