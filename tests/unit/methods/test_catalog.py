from pathlib import Path

import pytest

from peftsweep.errors import ConfigError
from peftsweep.methods.catalog import method_files, read_method_file

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


def test_a_method_file_that_names_no_modality_is_refused_with_the_way_out(config_dir: Path) -> None:
    path = config_dir / "method" / "mine.yaml"
    path.write_text(MINE.replace("modalities: [text]\n", ""))
    with pytest.raises(ConfigError, match=r"must name the modalities that it serves(.|\n)*mine.yaml"):
        read_method_file(path)


def test_every_built_in_method_names_its_modalities_itself() -> None:
    silent = [name for name, path in method_files().items() if "\nmodalities: [" not in path.read_text()]
    assert [name for name in silent if "\ndefaults:" not in method_files()[name].read_text()] == []
