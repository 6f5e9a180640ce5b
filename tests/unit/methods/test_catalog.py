import json
from pathlib import Path

import pytest

from peftsweep.errors import ConfigError
from peftsweep.methods.catalog import method_files, print_methods, read_method_file

MINE = """# python -m peftsweep --config-dir mine method=mine
name: mine
peft_type: LORA
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


def test_a_users_own_methods_stand_beside_the_built_in_ones(config_dir: Path) -> None:
    assert {"lora", "mine"} <= set(method_files(config_dir))


def test_a_placeholder_is_no_method() -> None:
    assert "from_file" not in method_files()


def test_reading_resolves_the_capacity(config_dir: Path) -> None:
    assert read_method_file(method_files(config_dir)["mine"]).peft == {"r": 6, "lora_alpha": 12}


def test_an_unknown_key_in_a_method_file_is_refused_with_the_file(config_dir: Path) -> None:
    path = config_dir / "method" / "mine.yaml"
    path.write_text(MINE + "capacitty: 3\n")
    with pytest.raises(ConfigError, match=r"capacitty(.|\n)*mine.yaml"):
        read_method_file(path)


def test_the_listing_as_json_holds_what_the_table_shows(config_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_methods(["mine"], config_dir, as_json=True) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["capacity"] == 6
    assert row["search_space"]["lr"] == [1e-5, 1e-2]
    assert row["capabilities"]["mergeable"] is True


def test_a_misspelt_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'lora-plus'"):
        print_methods(["lora-pluss"])


def test_the_table_says_which_methods_serve_text_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    print_methods(["prompt-tuning"])
    assert "text models only" in capsys.readouterr().out
    print_methods(["lora"])
    assert "models only" not in capsys.readouterr().out
