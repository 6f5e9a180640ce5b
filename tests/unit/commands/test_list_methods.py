"""`peftsweep methods`: the table, the long view and the JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from peftsweep.commands.list_methods import run
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


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


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


@pytest.mark.parametrize(
    ("method", "models"),
    [
        ("prompt-tuning", "text, encoder and vision_language models"),
        ("lora", "text, image, encoder and vision_language models"),
    ],
)
def test_the_long_view_says_which_models_a_method_serves_and_keeps_its_papers_address_whole(
    method: str, models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run([method, "--long"])
    printed = capsys.readouterr().out
    assert f"  {models}" in printed
    assert f"  {read_method_file(method_files()[method]).paper}\n" in printed


def test_the_table_says_that_its_rates_are_the_published_ones(capsys: pytest.CaptureFixture[str]) -> None:
    run(["lora"])
    assert "lr: as published, for large models; pocket-llama trains at 10 times that" in capsys.readouterr().out


def test_each_method_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    run([])
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "http" in line] == list(method_files())


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["lora", "lily", "prompt-tuning", "modality=image"], ["lora", "lily"]),
        (["lora", "lily", "oft", "mergeable"], ["lora", "oft"]),
        (["lora", "oft", "pissa", "mergeable", "quantized", "lora-convertible"], ["lora"]),
    ],
)
def test_words_narrow_the_list(words: list[str], names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run([*words, "--json"])
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == names


@pytest.mark.parametrize(
    ("word", "answer"),
    [("mergable", "Did you mean mergeable"), ("modality=imag", "Did you mean image"), ("modalty=x", "modality")],
)
def test_a_misspelt_word_is_answered_with_the_nearest_one(word: str, answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        run([word])


def test_the_built_in_methods_are_listed_without_trying_one() -> None:
    """Where this fails, a YAML has changed: `python -m peftsweep.methods.known_capabilities` tries them anew."""
    code = "import sys; from peftsweep.__main__ import main; main(['methods']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "peft"}.isdisjoint(done.stdout.splitlines()[-1].split())


def test_what_was_found_of_ones_own_method_is_kept(config_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ["mine", "--config-dir", str(config_dir)]
    run(own)
    monkeypatch.delattr("peftsweep.methods.capabilities.find_capabilities")
    run(own)
    (config_dir / "method" / "mine.yaml").write_text(MINE.replace("r: ${method.capacity}", "r: 3"))
    with pytest.raises(ImportError, match="find_capabilities"):
        run(own)
