"""An earlier sweep as the place where a search begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peftsweep.errors import ConfigError, DataError
from peftsweep.records.files import TABLE_FILE
from peftsweep.records.space import CAPACITY, LR, Dimension
from peftsweep.sweeps.protocol.prior import with_prior
from peftsweep.sweeps.protocol.specification import SweepSpec, save_spec

MakeSpec = Callable[..., SweepSpec]

BEST = {"lora": {LR: 3e-4, CAPACITY: 16}, "oft": {LR: 5e-5, CAPACITY: 4}}


@pytest.fixture
def earlier(sweep_spec: MakeSpec, tmp_path: Path) -> Path:
    """A sweep of lora and oft that has ended, in the folder where sweeps lie."""
    folder = tmp_path / "outputs/sweeps/small"
    folder.mkdir(parents=True)
    save_spec(replace(sweep_spec("lora", "oft"), folder=str(folder)))
    rows = [{"study": method, "method": method, "best": best} for method, best in BEST.items()]
    (folder / TABLE_FILE).write_text(json.dumps({"rows": rows}))
    return folder


def asking(spec: SweepSpec, prior: str, *space: Dimension) -> SweepSpec:
    studies = tuple(replace(study, space=space or study.space) for study in spec.studies)
    return replace(spec, studies=studies, settings=replace(spec.settings, prior=prior))


def centres(spec: SweepSpec) -> dict[str, dict[str, Any]]:
    return {study.label: study.centre for study in with_prior(spec).studies}


@pytest.mark.parametrize("named", ["small", "outputs/sweeps/small"])
def test_each_method_starts_around_its_own_best_settings(
    named: str, earlier: Path, tmp_path: Path, sweep_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert centres(asking(sweep_spec("lora", "oft"), named)) == BEST


def test_a_rate_is_carried_over_as_a_multiple_of_the_published_one(earlier: Path, sweep_spec: MakeSpec) -> None:
    rate = Dimension(LR, 1e-4, 1e-1, log=True, default=1e-3)  # ten times that of the earlier model
    assert centres(asking(sweep_spec("lora"), str(earlier), rate)) == {"lora": {LR: 3e-3}}


def test_what_lies_outside_the_range_gives_way_to_what_is_nearest(earlier: Path, sweep_spec: MakeSpec) -> None:
    space = Dimension(LR, 1e-5, 1e-4, log=True, default=1e-4), Dimension(CAPACITY, choices=(32, 64), default=32)
    assert centres(asking(sweep_spec("lora"), str(earlier), *space)) == {"lora": {LR: 1e-4, CAPACITY: 32}}


def test_what_was_not_searched_before_starts_at_the_default(earlier: Path, sweep_spec: MakeSpec) -> None:
    decay = Dimension("hparams.weight_decay", 0.0, 0.1, default=0.01)
    found = centres(asking(sweep_spec("lora"), str(earlier), decay))
    assert found == {"lora": {"hparams.weight_decay": 0.01}}


def test_a_sweep_that_does_not_exist_is_told_with_the_nearest_name(
    earlier: Path, tmp_path: Path, sweep_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no sweep has this name.*Did you mean small\?"):
        with_prior(asking(sweep_spec("lora"), "smell"))


def test_a_method_that_it_lacks_is_told_before_any_job(earlier: Path, sweep_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match="must have tuned every method, got 'small without lily'"):
        with_prior(asking(sweep_spec("lora", "lily"), str(earlier)))


def test_a_sweep_that_was_not_run_to_its_end_is_told(earlier: Path, sweep_spec: MakeSpec) -> None:
    (earlier / TABLE_FILE).unlink()
    with pytest.raises(ConfigError, match="an earlier sweep must have been tuned"):
        with_prior(asking(sweep_spec("lora"), str(earlier)))


def test_without_one_nothing_is_centred(sweep_spec: MakeSpec) -> None:
    assert with_prior(sweep_spec("lora")) == sweep_spec("lora")
