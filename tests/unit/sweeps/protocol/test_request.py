"""What a command line spans, what it searches, and what it must not ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftsweep.config.compose import compose_config, group_choices, parse_command_line
from peftsweep.errors import ConfigError
from peftsweep.job.resolve import resolve_job
from peftsweep.records.space import CAPACITY, LR, Dimension, Space
from peftsweep.sweeps.protocol.request import FAIR_SWEEPER, Request, build_space, read_request, with_full_sweep_keys


def request(*typed: str, config_dir: Path | None = None) -> Request:
    return read_request(parse_command_line(list(typed)).overrides, config_dir)


def space(*typed: str) -> Space:
    """Of the first study."""
    asked = request(*typed)
    overrides = (*(f"{key}={value}" for key, value in asked.cells()[0].items()), *asked.fixed)
    return build_space(resolve_job(compose_config(overrides), overrides), asked)


def dimension(key: str, *typed: str) -> Dimension:
    return next(found for found in space(*typed) if found.key == key)


def keys(*typed: str) -> list[str]:
    return [found.key for found in space(*typed)]


def test_a_list_of_values_spans_studies() -> None:
    assert request("method=lora,oft", "task=metamath").cells() == [{"method": "lora"}, {"method": "oft"}]
    assert request("method=lora,oft", "task=metamath").fixed == ("task=metamath",)


def test_two_axes_span_their_product() -> None:
    cells = request("method=lora,oft", "seed=1,2").cells()
    assert [tuple(cell.values()) for cell in cells] == [("lora", "1"), ("lora", "2"), ("oft", "1"), ("oft", "2")]


def test_without_an_axis_there_is_one_study() -> None:
    assert request("method=lora").cells() == [{}]


def test_a_pattern_spans_all_methods_that_need_nothing_more() -> None:
    found = request("method=glob(*)").axes["method"]
    assert set(found) == set(group_choices("method")) - {"from_file"}


def test_a_pattern_without_a_match_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one value"):
        request("method=glob(nothing*)")


@pytest.mark.parametrize(
    "typed",
    ["hparams.lr=interval(1e-5,1e-3)", "hparams.lr=range(1,4)", "hparams.lr=choice(1e-3,1e-4)", "a=tag(log,choice(1))"],
)
def test_hydras_sweep_syntax_is_searched(typed: str) -> None:
    found = request(typed)
    assert [override.input_line for override in found.searched] == [typed]
    assert not found.axes


@pytest.mark.parametrize("typed", ["seed=choice(1,2)", "seed=range(1,3)", "seed=1,2"])
def test_seeds_span_studies_however_written(typed: str) -> None:
    assert request(typed).axes == {"seed": ("1", "2")}


def test_a_group_spans_studies_however_written() -> None:
    assert request("method=choice(lora,oft)").axes == {"method": ("lora", "oft")}


def test_seeds_have_no_interval() -> None:
    with pytest.raises(ConfigError, match="must be listed"):
        request("seed=interval(1,5)")


def test_a_value_typed_twice_is_one_study() -> None:
    assert request("method=lora,lora").axes == {"method": ("lora",)}


def test_a_method_brings_its_own_space() -> None:
    found = space("method=lora", "hparams.lr_scale=1")
    assert [(d.key, d.low, d.high, d.log, d.choices) for d in found] == [
        (LR, 1e-5, 1e-2, True, ()),
        (CAPACITY, None, None, False, (4, 8, 16, 32, 64)),
    ]


def test_a_method_without_a_size_knob_has_one_dimension() -> None:
    assert keys("method=ia3") == [LR]


def test_a_size_typed_for_others_is_not_searched_where_there_is_no_knob() -> None:
    assert keys("method=ia3,lora", "method.capacity=choice(8,16)") == [LR]
    assert keys("method=lora,ia3", "method.capacity=choice(8,16)") == [LR, CAPACITY]


def test_a_typed_value_is_not_searched() -> None:
    assert keys("method=lora", "hparams.lr=1e-3") == [CAPACITY]
    assert keys("method=lora", "method.capacity=8") == [LR]


def test_a_setting_that_spans_studies_is_not_searched_in_them() -> None:
    assert keys("method=lora", "hparams.lr=1e-3,1e-4") == [CAPACITY]


def test_typed_ranges_replace_the_methods_own() -> None:
    found = dimension(LR, "method=lora", "hparams.lr=interval(1e-4,1e-3)")
    assert (found.low, found.high, found.log) == (1e-4, 1e-3, True)


def test_typed_ranges_extend_the_methods_own() -> None:
    assert keys("method=lora", "hparams.weight_decay=interval(0,0.1)") == [LR, CAPACITY, "hparams.weight_decay"]


@pytest.mark.parametrize(("typed", "is_log"), [("interval(1e-3,0.1)", False), ("tag(log,interval(1e-3,0.1))", True)])
def test_a_tag_makes_the_scale_logarithmic(typed: str, is_log: bool) -> None:
    assert dimension("hparams.weight_decay", f"hparams.weight_decay={typed}").log is is_log


def test_an_interval_of_a_whole_setting_is_whole() -> None:
    assert dimension("hparams.batch_size", "hparams.batch_size=interval(1,8)").integer
    assert not dimension("hparams.weight_decay", "hparams.weight_decay=interval(0,1)").integer


def test_numbers_to_choose_from_rise_and_stand_once() -> None:
    assert dimension("hparams.batch_size", "hparams.batch_size=choice(8,2,8,4)").choices == (2, 4, 8)
    assert dimension("hparams.batch_size", "hparams.batch_size=range(8,1,-3)").choices == (2, 5, 8)


def test_names_to_choose_from_stay_in_their_order() -> None:
    found = dimension("hparams.scheduler", "hparams.scheduler=choice(linear,cosine)")
    assert (found.choices, found.default) == (("linear", "cosine"), "cosine")


def test_an_argument_of_the_peft_config_can_be_searched() -> None:
    found = dimension("method.peft.use_rslora", "+method.peft.use_rslora=choice(true,false)")
    assert found.choices == (True, False)


def test_the_first_trial_is_the_published_default() -> None:
    assert dimension(CAPACITY, "method=lora").default == 32
    assert dimension(LR, "method=lora", "hparams.lr_scale=1").default == 1e-4


def test_a_default_outside_a_typed_range_moves_to_its_nearest_value() -> None:
    assert dimension(LR, "method=lora", "hparams.lr=interval(1e-3,1e-2)", "hparams.lr_scale=1").default == 1e-3
    assert dimension(CAPACITY, "method=lora", "method.capacity=choice(2,8)").default == 8


def test_a_models_scale_moves_range_and_default_of_the_rate() -> None:
    plain, scaled = (dimension(LR, "method=lora", f"hparams.lr_scale={scale}") for scale in (1, 10))
    assert plain.default is not None
    expected = (plain.low * 10, plain.high * 10, plain.default * 10)  # type: ignore[operator]
    assert (scaled.low, scaled.high, scaled.default) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("typed", "rule"),
    [
        ("hparams.lr=interval(1e-3,1e-3)", "low < high"),
        ("hparams.lr=interval(1e-2,1e-5)", "low < high"),
        ("hparams.lr=interval(0,1e-2)", "above 0"),
        ("hparams.lr=interval(-1,1e-2)", "above 0"),
        ("hparams.weight_decay=tag(log,interval(0,1))", "above 0"),
        ("hparams.weight_decay=interval(0,inf)", "numbers"),
        ("hparams.batch_size=range(4,4)", "must not be empty"),
        ("hparams.larning_rate=interval(1,2)", "no such setting"),
        ("nothing=choice(1,2)", "no such setting"),
    ],
)
def test_a_range_that_holds_nothing_is_refused(typed: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as caught:
        space("method=lora", typed)
    assert typed.partition("=")[0] in str(caught.value)


def test_an_interval_of_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="interval"):
        request("hparams.lr=interval(low,high)")


def test_a_misspelt_setting_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="weight_decay"):
        space("hparams.weight_decy=interval(0,1)")


def test_a_study_without_anything_to_search_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs something to search"):
        space("method=lora", "hparams.lr=1e-3", "method.capacity=8")


def test_the_sweeps_own_keys_may_be_typed_short() -> None:
    typed = [FAIR_SWEEPER, "n_trials=20", "budget.tokens=1000", "method=lora", "-m", "hparams.lr=1e-3"]
    wanted = [FAIR_SWEEPER, "hydra.sweeper.n_trials=20", "hydra.sweeper.budget.tokens=1000", *typed[3:]]
    assert with_full_sweep_keys(typed) == wanted


@pytest.mark.parametrize("value", ["memory<=12GB", "'memory<=12GB'", "valid/dino_similarity>=40%"])
def test_a_constraint_is_quoted_for_hydra(value: str) -> None:
    found = with_full_sweep_keys([FAIR_SWEEPER, f"constraint={value}"])[1]
    assert parse_command_line([found]).overrides[0].value() == value.strip("'")


def test_another_sweeper_keeps_its_keys() -> None:
    assert with_full_sweep_keys(["n_trials=20"]) == ["n_trials=20"]
