"""Which settings of a job matter when jobs are compared."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from peftsweep.config.schema import JobConfig, TaskConfig
from peftsweep.records.job_settings import compared_settings, differing_keys, flatten, without_circumstances
from peftsweep.records.jobs import load_folder
from peftsweep.records.results import JobResult, Status, save_result
from peftsweep.report.analysis.groups import compare

CHANGES: list[dict[str, Any]] = [
    {"plan": False},
    {"gpu": "24GB"},
    {"fit": True},
    {"device": "cuda:1"},
    {"save_adapter": False},
    {"cache": "elsewhere"},
    {"tracking": {"enabled": False}},
    {"task": asdict(TaskConfig(base_score=True))},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_seeds_that_ran_under_other_circumstances_are_one_row(tmp_path: Path, change: dict[str, Any]) -> None:
    for seed in range(3):
        config = asdict(JobConfig()) | (change if seed == 1 else {}) | {"seed": seed}
        metrics = {"test/accuracy": 0.5}
        folder = tmp_path / str(seed)
        folder.mkdir()
        save_result(JobResult(Status.OK, "lora", "m", "t", seed, metrics=metrics, config=config), folder)
    (group,) = compare(load_folder(tmp_path)).groups
    assert [row.seeds for row in group.rows] == [(0, 1, 2)]


@pytest.mark.parametrize("name", ["hparams", "model", "task", "method"])
def test_what_is_trained_and_how_always_matters(name: str) -> None:
    assert any(key.startswith(f"{name}.") for key in compared_settings(asdict(JobConfig())))


def test_every_field_of_a_job_plays_one_part() -> None:
    config = flatten(asdict(JobConfig()))
    compared = compared_settings(asdict(JobConfig()))
    assert compared.keys() <= without_circumstances(config).keys() <= config.keys()
    assert config.keys() - compared.keys() >= {"seed", "stage", "study", "plan", "tracking.uri", "task.base_score"}


def test_a_hyper_parameter_that_an_earlier_version_did_not_know_had_its_default() -> None:
    config = asdict(JobConfig())
    before = config | {"hparams": {key: value for key, value in config["hparams"].items() if key != "tf32"}}
    assert compared_settings(before) == compared_settings(config)
    with_tf32 = config | {"hparams": config["hparams"] | {"tf32": True}}
    assert differing_keys([compared_settings(before), compared_settings(with_tf32)]) == ["hparams.tf32"]


def test_groups_become_dotted_keys_and_an_empty_one_stays() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": {}}) == {"a.b.c": 1, "d": {}}


def test_settings_that_differ_are_told_in_order() -> None:
    assert differing_keys([{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": None}]) == ["b"]
