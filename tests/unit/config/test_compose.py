"""From the command line to a composed configuration."""

import pytest
from omegaconf import OmegaConf

from peftsweep.config.compose import (
    compose_config,
    config_folder,
    group_choices,
    group_names,
    parse_command_line,
    register_resolvers,
)
from peftsweep.errors import ConfigError


def resolved(text):
    register_resolvers()
    return OmegaConf.create({"a": 3, "b": None, "value": text}).value


@pytest.mark.parametrize(("text", "product"), [("${times:2,${a}}", 6), ("${times:0.5,${a}}", 1.5), ("${times:7}", 7)])
def test_times_multiplies(text, product):
    assert resolved(text) == product
    assert type(resolved(text)) is type(product)


def test_the_configuration_folder_holds_the_primary_file():
    assert (config_folder() / "config.yaml").is_file()


def test_groups_are_those_that_help_lists():
    assert group_names() == ("experiment", "hparams", "method", "model", "parallel", "task", "tracking")


def test_choices_of_a_group_include_the_users_own(tmp_path):
    (tmp_path / "method" / "mine").mkdir(parents=True)
    (tmp_path / "method" / "mine" / "wide.yaml").touch()
    assert {"lora", "mine/wide"} <= set(group_choices("method", tmp_path))
    assert "mine/wide" not in group_choices("method")


def test_a_group_of_the_users_own_is_known(tmp_path):
    (tmp_path / "sweeps").mkdir()
    assert "sweeps" in group_names(tmp_path)


def test_a_users_folder_is_composed_with_ours(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("defaults: [lora, _self_]\nname: mine\ncapacity: 3\n")
    method = compose_config(["method=mine"], tmp_path).method
    assert (method.name, method.peft.r) == ("mine", 3)


def test_composing_twice_gives_the_same():
    assert compose_config(["seed=3"]) == compose_config(["seed=3"])


def test_a_command_line_knows_what_was_typed():
    line = parse_command_line(["-m", "method=lora,oft", "+hparams.optimizer_kwargs.eps=1", "--config-dir", "mine"])
    assert line.multirun
    assert line.config_dir.is_absolute()
    assert line.names("method")
    assert line.source("hparams.optimizer_kwargs.eps") == "the command line"
    assert line.source("seed") == ""


@pytest.mark.parametrize("flag", ["--help", "--hydra-help", "--cfg=job", "--info", "--shell-completion"])
def test_flags_that_only_show_run_nothing(flag):
    assert parse_command_line([flag]).shows_only
    assert not parse_command_line([]).shows_only


def test_bad_syntax_is_told_with_the_argument():
    with pytest.raises(ConfigError, match=r"got 'method=\[lora'"):
        parse_command_line(["method=[lora"])
