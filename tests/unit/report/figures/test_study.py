"""The pictures of a study that MLflow keeps."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from peftsweep.records.results import Status
from peftsweep.records.space import Dimension
from peftsweep.report.analysis.tuning import Trial, Tuning
from peftsweep.report.figures.study import draw_study

LR = Dimension("hparams.lr", 1e-5, 1e-2, log=True, default=1e-4)
CAPACITY = Dimension("method.capacity", choices=(4, 16, 64))


def tuning(*values: float | None, space: tuple[Dimension, ...] = (LR, CAPACITY)) -> Tuning:
    """A trial for each value; None is one that ended without."""
    trials = []
    for number, value in enumerate(values):
        settings = {"hparams.lr": 1e-5 * 2**number, "method.capacity": (4, 16, 64)[number % 3]}
        status = Status.FAILED if value is None else Status.OK
        trials.append(Trial(f"{number}", status, {found.key: settings[found.key] for found in space}, value, 10.0))
    return Tuning("lora", "valid/loss", tuple(trials), {}, space)


@pytest.mark.parametrize(
    ("found", "drawn"),
    [
        (tuning(), set()),
        (tuning(None, None), set()),
        (tuning(0.9, 0.8, space=()), {"history"}),
        (tuning(0.9, 0.9, space=(LR,)), {"history", "learning_rate"}),
        (tuning(0.9, 0.8), {"history", "learning_rate", "parallel_coordinate"}),
        (tuning(*[1 / n for n in range(1, 13)]), {"history", "learning_rate", "parallel_coordinate", "importance"}),
    ],
)
def test_what_can_be_drawn_is_drawn(tmp_path: Path, found: Tuning, drawn: set[str]) -> None:
    paths = draw_study(found, tmp_path)
    assert {path.stem for path in paths} == drawn
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_optuna_speaks_as_loud_as_before(tmp_path: Path) -> None:
    before = optuna.logging.get_verbosity()
    draw_study(tuning(*[1 / n for n in range(1, 13)]), tmp_path)
    assert optuna.logging.get_verbosity() == before
