"""`peftsweep methods`: the table and the JSON."""

import json
from pathlib import Path

import pytest

from peftsweep.commands.list_methods import run
from peftsweep.errors import ConfigError

MINE = """# python -m peftsweep --config-dir mine method=mine
name: mine
peft_type: LORA
modalities: [text]
paper: https://example.org
capacity: 6
capacity_knob: rank
peft:
  r: ${method.capacity}
  lora_alpha: ${times:2,${method.capacity}}
"""


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(MINE)
    return tmp_path


def test_the_listing_as_json_holds_what_the_table_shows(config_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mine", "--config-dir", str(config_dir), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["capacity"] == 6
    assert row["search_space"]["lr"] == [1e-5, 1e-2]
    assert row["capabilities"]["mergeable"] is True


def test_only_the_methods_that_were_named_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lora", "oft", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["lora", "oft"]


def test_a_misspelt_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean lora-plus"):
        run(["lora-pluss"])


@pytest.mark.parametrize(("method", "models"), [("prompt-tuning", "text models"), ("lora", "text and image models")])
def test_the_table_says_which_models_a_method_serves(
    method: str, models: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    run([method])
    assert f" {models} " in capsys.readouterr().out


def test_the_table_says_that_its_rates_are_the_published_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    run(["lora"])
    assert "lr: as published, for large models; pocket-llama trains at 10 times that" in capsys.readouterr().out
