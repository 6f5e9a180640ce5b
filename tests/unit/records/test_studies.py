"""How a sweep judges, read from its folder and from MLflow alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftsweep.records.mlflow_format import confirmation_tags, read_study, space_tags, study_tags
from peftsweep.records.studies import Study, confirm_looks, read_studies

LOOKS = [3, 5, 7]
SEQUENTIAL = {"rule": "sequential", "looks": LOOKS, "seeds": None, "margin": "2%", "default_seeds": None}


def read(folder: Path, settings: dict[str, Any]) -> Study:
    plan = {"objective": "valid/loss", "settings": settings, "studies": [{"name": "monday/lora", "space": []}]}
    (folder / "sweep.json").write_text(json.dumps(plan))
    (study,) = read_studies(folder / "sweep.json")
    return study


@pytest.mark.parametrize(
    ("confirm", "looks", "margin"),
    [
        (SEQUENTIAL, (3, 5, 7), 0.02),
        (SEQUENTIAL | {"margin": None}, (3, 5, 7), None),
        (SEQUENTIAL | {"seeds": 6}, (3, 5, 6), 0.02),
        (SEQUENTIAL | {"seeds": 0}, (), 0.02),
        (SEQUENTIAL | {"rule": "fixed"}, (3,), 0.02),
        ({"seeds": 2, "default_seeds": 1}, (2,), None),  # before there were looks
    ],
)
def test_a_folder_tells_looks_and_margin(
    tmp_path: Path, confirm: dict[str, Any], looks: tuple[int, ...], margin: float | None
) -> None:
    study = read(tmp_path, {"confirm": confirm})
    assert (study.looks, study.margin) == (looks, margin)


def test_a_study_of_which_nothing_is_told_is_judged_as_older_sweeps_were(tmp_path: Path) -> None:
    assert read(tmp_path, {}).looks == confirm_looks("fixed", (), None)


@pytest.mark.parametrize("margin", [None, 0.02])
def test_mlflow_tells_them_too(margin: float | None) -> None:
    tags = study_tags("monday/lora", {}) | space_tags(()) | confirmation_tags(LOOKS, margin)
    study = read_study(tags, [])
    assert study is not None
    assert (study.looks, study.margin) == ((3, 5, 7), margin)


def test_an_older_run_tells_of_no_looks() -> None:
    study = read_study(study_tags("monday/lora", {}) | space_tags(()), [])
    assert study is not None
    assert (study.looks, study.margin) == ((), None)
