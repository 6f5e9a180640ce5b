"""A sweep as it was asked for: found again by its name, kept whole in its file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from peftsweep.config.compose import parse_command_line
from peftsweep.config.schema import BudgetConfig, SamplerConfig, SweepConfig
from peftsweep.errors import ConfigError, DataError
from peftsweep.records.files import SWEEP_FILE
from peftsweep.records.space import LR, Dimension
from peftsweep.sweeps.protocol.request import read_request
from peftsweep.sweeps.protocol.specification import (
    DEFAULT_TRIALS,
    SweepSpec,
    build_sweep_spec,
    load_spec,
    save_spec,
    with_parents,
    with_space,
)

MakeSpec = Callable[..., SweepSpec]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def spec(*typed: str, settings: SweepConfig | None = None) -> SweepSpec:
    request = read_request(parse_command_line(list(typed)).overrides, None)
    return build_sweep_spec(request, ["-m", *typed], settings or SweepConfig())


def test_each_cell_becomes_a_study() -> None:
    found = spec("method=lora,ia3", "task=metamath")
    assert [(study.method, study.task, study.overrides) for study in found.studies] == [
        ("lora", "metamath", ("method=lora", "task=metamath")),
        ("ia3", "metamath", ("method=ia3", "task=metamath")),
    ]
    assert [len(study.space) for study in found.studies] == [2, 1]


def test_a_sweep_is_named_after_what_it_compares_and_its_day() -> None:
    found = spec("method=lora,lily,oft,ia3,vera", "model=hf", "model.id=Qwen/Qwen3-0.6B").name
    assert re.fullmatch(r"metamath-Qwen3-0.6B-lora-lily-oft-2-more-\d{4}-\d\d-\d\d-[0-9a-f]{8}", found)


def test_studies_of_several_models_are_told_apart_by_the_last_part_of_their_ids() -> None:
    found = spec("method=lora", "model=hf", "model.id=Qwen/Qwen3-0.6B,some/tiny")
    assert [study.label for study in found.studies] == ["lora-Qwen3-0.6B", "lora-tiny"]
    assert found.name.startswith("metamath-Qwen3-0.6B-1-more-lora-")


@pytest.mark.parametrize("name", ["metamath-pocket-llama-lora-ia3-2001-02-03-{}", "metamath-pocket-llama-{}"])
def test_the_same_comparison_finds_its_sweep_on_another_day(name: str) -> None:
    before = spec("method=lora,ia3")
    named = name.format(before.name[-8:])
    begun = replace(before, name=named, folder=str(before.path.with_name(named)))
    begun.path.mkdir(parents=True)
    save_spec(begun)
    assert spec("method=ia3,lora").name == named


@pytest.mark.parametrize(
    "settings",
    [
        SweepConfig(n_trials=99),
        SweepConfig(budget=BudgetConfig(tokens=10)),
        SweepConfig(workers=7),
        SweepConfig(extend=True),
    ],
)
def test_a_longer_sweep_of_the_same_has_the_same_name(settings: SweepConfig) -> None:
    assert spec("method=lora", settings=settings).name == spec("method=lora").name


@pytest.mark.parametrize(
    "typed",
    [
        ("method=lora,oft",),
        ("method=lora", "seed=1,2"),
        ("method=lora", "hparams.max_steps=7"),
        ("method=lora", "hparams.lr=interval(1e-4,1e-3)"),
    ],
)
def test_another_comparison_has_another_name(typed: tuple[str, ...]) -> None:
    assert spec(*typed).name != spec("method=lora").name


def test_a_name_can_be_given() -> None:
    found = spec("method=lora", settings=SweepConfig(name="monday"))
    assert (found.name, found.studies[0].name) == ("monday", "monday/lora")
    assert Path(found.folder) == Path.cwd() / "outputs/sweeps/monday"


def test_labels_tell_studies_apart_and_are_folder_names() -> None:
    typed = ["method=lora,ia3", "seed=1,2", "task.template='{prompt}','Q: {prompt}/A:','(prompt)'"]
    labels = [study.label for study in spec(*typed).studies]
    assert len(set(labels)) == len(labels) == 12
    assert all(re.fullmatch(r"\w[\w.-]{0,110}", label) for label in labels)
    assert labels[0].startswith("lora-seed-1")


def test_values_that_differ_only_in_signs_have_labels_of_their_own() -> None:
    labels = [study.label for study in spec("task.template='(a)','[a]','a-3','{a}'").studies]
    assert len(set(labels)) == 4


def test_one_method_alone_is_its_label() -> None:
    assert [study.label for study in spec("method=lora").studies] == ["lora"]


def test_all_problems_of_all_studies_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        spec("method=lora,oft", "hparams.lr=1,1e-3", "hparams.max_steps=0", "hparams.scheduler=never")
    assert len(caught.value.problems) == 2


def test_an_empty_space_of_one_study_is_told() -> None:
    with pytest.raises(ConfigError, match="for ia3 everything has one value"):
        spec("method=lora,ia3", "hparams.lr=1e-3")


def test_an_objective_that_the_task_does_not_report_is_refused() -> None:
    with pytest.raises(ConfigError, match="valid/loss"):
        spec("method=lora", settings=SweepConfig(objective="test/accuracy"))


def test_the_objective_is_the_tasks_own() -> None:
    found = spec("method=lora")
    assert (found.objective, found.direction) == ("valid/loss", "minimize")


@pytest.mark.parametrize(
    ("settings", "trials"),
    [
        (SweepConfig(), DEFAULT_TRIALS),
        (SweepConfig(n_trials=3), 3),
        (SweepConfig(budget=BudgetConfig(tokens=10)), None),
        (SweepConfig(budget=BudgetConfig(gpu_seconds=1.5)), None),
    ],
)
def test_trials_are_counted_where_nothing_else_is(
    settings: SweepConfig, trials: int | None, sweep_spec: MakeSpec
) -> None:
    assert sweep_spec(settings=settings).n_trials == trials


def test_a_saved_specification_is_read_back_whole(tmp_path: Path) -> None:
    settings = SweepConfig(n_trials=4, constraint="memory<=1GB", sampler=SamplerConfig("tpe", {"n_startup_trials": 3}))
    typed = ["method=lora,ia3", "hparams.scheduler=choice(linear,cosine)", "hparams.weight_decay=interval(0,0.1)"]
    asked = replace(spec(*typed, settings=settings), folder=str(tmp_path), config_dir="/somewhere")
    save_spec(asked)
    assert load_spec(tmp_path) == asked
    assert load_spec(tmp_path).limits == asked.limits


def test_a_specification_knows_where_it_lies_now(tmp_path: Path, sweep_spec: MakeSpec) -> None:
    save_spec(sweep_spec())
    (tmp_path / "moved").mkdir()
    (tmp_path / SWEEP_FILE).rename(tmp_path / "moved" / SWEEP_FILE)
    assert load_spec(tmp_path / "moved").path == tmp_path / "moved"


@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_folder_that_is_no_sweeps_is_told(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / SWEEP_FILE).write_text(content)
    with pytest.raises(DataError, match="outputs/sweeps"):
        load_spec(tmp_path)


def test_a_newer_specification_is_refused(tmp_path: Path, sweep_spec: MakeSpec) -> None:
    save_spec(sweep_spec())
    content = json.loads((tmp_path / SWEEP_FILE).read_text())
    (tmp_path / SWEEP_FILE).write_text(json.dumps(content | {"schema_version": 99}))
    with pytest.raises(DataError, match="too old"):
        load_spec(tmp_path)


def test_a_wider_space_is_kept_beside_what_was_asked(sweep_spec: MakeSpec) -> None:
    wider = (Dimension(LR, 1e-6, 1e-2, log=True),)
    found = with_space(sweep_spec("lora", "oft"), "oft", wider)
    assert (found.study("oft").space, found.study("oft").asked_space) == (wider, found.study("lora").space)


def test_studies_learn_their_mlflow_runs(sweep_spec: MakeSpec) -> None:
    found = with_parents(sweep_spec("lora", "oft"), {"monday/oft": "abc"})
    assert [study.parent_run_id for study in found.studies] == [None, "abc"]


def test_reports_are_due_before_the_last_step(sweep_spec: MakeSpec) -> None:
    found = sweep_spec()
    steps = found.report_steps(found.studies[0])
    assert steps
    assert all(0 < step < 90 for step in steps)
