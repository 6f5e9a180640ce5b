"""Plans and trials as data, without jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from peftsweep.config.schema import SweepConfig
from peftsweep.records.space import CAPACITY, LR, Dimension
from peftsweep.sweeps.execution.storage import open_storage
from peftsweep.sweeps.execution.tickets import Tickets
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec
from peftsweep.sweeps.protocol.trials import Ending, Outcome, Terms, Trial

SPACE = (
    Dimension(LR, 1e-5, 1e-2, log=True, default=1e-4),
    Dimension(CAPACITY, choices=(4, 8, 16, 32, 64), default=32),
)
STATES = {Ending.FINISHED: TrialState.COMPLETE, Ending.PRUNED: TrialState.PRUNED, Ending.SPENT: TrialState.PRUNED}


def make_study(label: str = "lora", **changes: Any) -> StudySpec:
    study = StudySpec(
        label=label,
        name=f"monday/{label}",
        overrides=(f"method={label}",),
        method=label,
        model="pocket-llama",
        task="metamath",
        seed=0,
        max_steps=90,
        step_rows=8,
        row_tokens=128,
        space=SPACE,
        asked_space=SPACE,
    )
    return replace(study, **changes)


def make_spec(folder: Path, *labels: str, **changes: Any) -> SweepSpec:
    studies = tuple(make_study(label) for label in labels or ("lora",))
    spec = SweepSpec(
        name="monday",
        folder=str(folder),
        working_folder=str(folder),
        config_dir=None,
        arguments=("-m", "hydra/sweeper=fair", "method=lora"),
        objective="valid/loss",
        settings=SweepConfig(n_trials=4),
        studies=studies,
        tracking=False,
    )
    return replace(spec, **changes)


def make_trial(number: int = 0, ending: Ending | None = Ending.FINISHED, **changes: Any) -> Trial:
    """A finished trial; with ending None, one that runs."""
    trial = Trial(
        id=number,
        number=number,
        state=TrialState.RUNNING if ending is None else STATES.get(ending, TrialState.FAIL),
        terms=Terms(),
        params={LR: 1e-3, CAPACITY: 8},
        reports={},
        value=0.5 if ending is Ending.FINISHED else None,
        worker="here-1-0",
        claimed_at_seconds=0.0,
        folder=None,
        attempts=0,
        outcome=None if ending is None else Outcome(ending, cause="the cause"),
        constraints={},
        ended_at_seconds=None if ending is None else 1000.0 + number,
    )
    return replace(trial, **changes)


@pytest.fixture(scope="session")
def study_spec() -> Callable[..., StudySpec]:
    return make_study


@pytest.fixture
def sweep_spec(tmp_path: Path) -> Callable[..., SweepSpec]:
    return lambda *labels, **changes: make_spec(tmp_path, *labels, **changes)


@pytest.fixture(scope="session")
def trial() -> Callable[..., Trial]:
    return make_trial


@pytest.fixture
def storage(tmp_path: Path) -> BaseStorage:
    return open_storage(tmp_path, None)


@pytest.fixture
def new_tickets() -> Callable[..., Tickets]:
    """Tickets of a study that is made where it does not exist."""

    def make(storage: BaseStorage, name: str = "monday/lora", count: int = 0) -> Tickets:
        optuna.create_study(storage=storage, study_name=name, direction="minimize", load_if_exists=True)
        tickets = Tickets(storage, name)
        for _ in range(count):
            tickets.add(Terms())
        return tickets

    return make
