"""How a trial process tells of a trial's end; no job is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftsweep.errors import (
    DeviceBusyError,
    DeviceLostError,
    Interrupted,
    MethodError,
    NonFiniteLossError,
    OutOfMemoryError,
    OutputError,
    Problem,
    Pruned,
)
from peftsweep.sweeps.execution import trial_server
from peftsweep.sweeps.execution.outcomes import recorded_outcome
from peftsweep.sweeps.execution.trial_process import TrialRequest
from peftsweep.sweeps.execution.trial_server import BudgetSpent, _ReportingDisplay, serve
from peftsweep.sweeps.execution.worker import stable_seed
from peftsweep.sweeps.protocol.trials import Ending, Outcome

ENDINGS = [
    (Pruned("worse"), Ending.PRUNED),
    (BudgetSpent("spent"), Ending.SPENT),
    (OutOfMemoryError("full"), Ending.OOM),
    (MemoryError(), Ending.CRASHED),
    (NonFiniteLossError("nan"), Ending.DIVERGED),
    (MethodError(Problem("a block must divide the layer")), Ending.REFUSED),
    (Interrupted("SIGTERM"), Ending.INTERRUPTED),
    (KeyboardInterrupt(), Ending.INTERRUPTED),
    (OutputError("the disk is full"), Ending.CRASHED),
    (DeviceBusyError("others hold it"), Ending.CRASHED),
    (DeviceLostError("illegal memory access"), Ending.CRASHED),  # so that the process is replaced
    (RuntimeError("no idea"), Ending.CRASHED),
]


def served(folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> Outcome:
    def run(*given: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(trial_server, "_run", run)
    return serve(TrialRequest((), str(folder), "valid/loss"), connection=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("error", "ending"), ENDINGS, ids=lambda value: type(value).__name__)
def test_each_way_to_end_is_told_apart(
    error: BaseException, ending: Ending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served(tmp_path, monkeypatch, error).ending is ending


def test_an_outcome_that_nobody_received_is_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = served(tmp_path, monkeypatch, NonFiniteLossError("nan"))
    assert recorded_outcome(tmp_path) == told


def test_a_proposals_seed_depends_on_sweep_study_and_trial_alone() -> None:
    assert stable_seed(0, "monday/lora", 3) == stable_seed(0, "monday/lora", 3) == 2538524498
    others = [stable_seed(1, "monday/lora", 3), stable_seed(0, "monday/oft", 3), stable_seed(0, "monday/lora", 4)]
    assert len({*others, stable_seed(0, "monday/lora", 3)}) == 4


def test_a_long_evaluation_tells_the_worker_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftsweep.sweeps.execution.trial_server.ALIVE_MESSAGE_SECONDS", 0.0)
    sent: list[str] = []
    with _ReportingDisplay(sent.append).progress("answering test questions", 300) as advance:
        advance(100)
        advance(20)
    assert sent == ["answering test questions 100/300", "answering test questions 120/300"]
