"""What small jobs tell of a machine; the jobs themselves are run by tests/process/test_doctor.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from peftsweep.checkup.findings import Mark
from peftsweep.checkup.trial import MEASURED, PLANNED, STEP_SECONDS, Bench, find_trials
from peftsweep.errors import MethodError
from peftsweep.records.results import JobResult, Status

GOOD = {STEP_SECONDS: 0.02, "train/loss": 3.0, "test/loss": 4.0}


@dataclass(frozen=True)
class FakeBench(Bench):
    """Answers by the first key that is among a job's settings: with metrics beside GOOD, or an error."""

    answers: Mapping[str, dict[str, float] | Exception] = field(default_factory=dict)

    def run(self, *settings: str) -> JobResult:
        found = next((answer for key, answer in self.answers.items() if key in settings), {})
        if isinstance(found, Exception):
            raise found
        return JobResult(Status.OK, "any", "m", "t", 0, metrics=GOOD | found, steps=4)


def trials(folder: Path, device: str, answers: Mapping[str, dict[str, float] | Exception]) -> dict[str, Mark]:
    return {found.about: found.mark for found in find_trials(FakeBench(folder, (), torch.device(device), answers))}


def test_a_method_that_fails_keeps_no_other_from_being_tried(tmp_path: Path) -> None:
    found = trials(tmp_path, "cuda", {"method=oft": MethodError("no"), "method=ia3": RuntimeError("a driver's own")})
    assert [about for about, mark in found.items() if mark is Mark.FAULT] == ["method oft", "method ia3"]
    assert {"method full", "fused loss", "compilation"} <= found.keys()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_a_fault(loss: float, tmp_path: Path) -> None:
    assert trials(tmp_path, "cpu", {"method=lora": {"test/loss": loss}})["method lora"] is Mark.FAULT


@pytest.mark.parametrize(("measured", "mark"), [(100.0, Mark.OK), (104.0, Mark.OK), (110.0, Mark.HEED)])
def test_memory_is_held_against_its_plan(measured: float, mark: Mark, tmp_path: Path) -> None:
    found = trials(tmp_path, "cuda", {"method=lora": {PLANNED: 100.0, MEASURED: measured}})
    assert found["plan of lora"] is mark
    assert "plan of oft" not in found


def test_a_fused_loss_that_is_another_one_is_a_fault(tmp_path: Path) -> None:
    assert trials(tmp_path, "cpu", {"hparams.fused_loss=false": {"train/loss": 3.1}})["fused loss"] is Mark.FAULT
