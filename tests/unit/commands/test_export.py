"""`peftsweep export`: its words, its refusals, what it prints."""

import re

import pytest

from peftsweep.commands.export_weights import parse_rank, run
from peftsweep.errors import ConfigError


@pytest.mark.parametrize(("text", "rank"), [("8", 8), ("1", 1), ("0.95", 0.95)])
def test_a_rank_is_a_whole_number_or_a_share(text, rank):
    assert parse_rank(text) == rank
    assert type(parse_rank(text)) is type(rank)


@pytest.mark.parametrize("text", ["0", "-1", "1.0", "1.5", "0.0", "many", ""])
def test_other_ranks_are_refused(text):
    with pytest.raises(ConfigError, match="rank must be"):
        parse_rank(text)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("lora", "job", "rnk=4"), "Did you mean rank?"),
        (("adapter", "job", "rank=4"), "has no such setting"),
        (("lora", "job", "rank"), "must be written key=value"),
    ],
)
def test_a_setting_that_an_export_lacks_is_refused(words, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        run(list(words))


def test_an_adapter_goes_below_the_job_unless_a_folder_is_named(finished, tmp_path, capsys):
    folder = finished("lora")
    assert run(["adapter", str(folder)]) == 0
    assert (folder / "export" / "adapter" / "adapter_model.safetensors").exists()
    assert run(["adapter", str(folder), f"folder={tmp_path / 'here'}"]) == 0
    assert (tmp_path / "here" / "README.md").exists()
    assert str(tmp_path / "here") in capsys.readouterr().out


def test_the_score_before_and_after_is_shown(finished, tmp_path, capsys):
    assert run(["lora", str(finished("miss")), f"folder={tmp_path / 'out'}", "rank=64"]) == 0
    printed = capsys.readouterr().out
    assert "before" in printed
    assert "after" in printed
    assert "test/loss" in printed


def test_the_benchmark_s_files_are_named(finished, tmp_path, capsys):
    assert run(["hf", str(finished("lora")), f"folder={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "MetaMathQA/results/lora--pocket-llama-rank32-lr0.003.json" in printed
    assert (tmp_path / "MetaMathQA/experiments/lora/pocket-llama-rank32-lr0.003/adapter_config.json").exists()
