import json
import sys
from pathlib import Path
from typing import Any

import pytest

from peftsweep.errors import ConfigError, DataError
from peftsweep.modalities.text.rows import Row
from peftsweep.modalities.text.settings import SftConfig
from peftsweep.modalities.text.sft import build_judging, build_source, load_scorer, scorer_key

ROW = Row("Good morning", "Bonjour")


@pytest.fixture
def scorer_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own, in a folder on the path."""
    name = "scorers_of_a_test"
    text = "def length(prompt, target, generated):\n    return len(generated) / len(target)\n\nnumber = 3\n"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def write_rows(path: Path, count: int) -> str:
    records = [{"prompt": f"prompt {number}", "response": f"response {number}"} for number in range(count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def config(**changes: Any) -> SftConfig:
    return SftConfig(name="sft", **changes)


@pytest.mark.parametrize(("generated", "right"), [("Bonjour", 1.0), (" Bonjour\n", 1.0), ("bonjour", 0.0), ("", 0.0)])
def test_an_answer_is_right_if_it_is_the_target_apart_from_outer_white_space(generated: str, right: float) -> None:
    judgement = build_judging(SftConfig()).judge(ROW, generated)
    assert judgement.values == {"exact_match": right}
    assert judgement.parsed == generated.strip()


def test_ones_own_scorer_comes_before_exact_match(scorer_module: str) -> None:
    judgement = build_judging(SftConfig(scorer=f"{scorer_module}:length")).judge(ROW, "Bonjour, Bonjour")
    assert list(judgement.values.items()) == [("score", 16 / 7), ("exact_match", 0.0)]


@pytest.mark.parametrize("path", ["no.such.module:function", "json:no_such_function", "json", "", ":", "json:"])
def test_a_scorer_that_is_not_there_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"task\.scorer must name a function as module:function"):
        load_scorer(path)


def test_a_scorer_that_cannot_be_called_is_refused(scorer_module: str) -> None:
    with pytest.raises(ConfigError, match=r"task\.scorer must name a function, got"):
        load_scorer(f"{scorer_module}:number")


def test_an_edited_scorer_is_another_scorer(scorer_module: str, tmp_path: Path) -> None:
    before = scorer_key(f"{scorer_module}:length")
    assert scorer_key(f"{scorer_module}:length") == before != scorer_key(None)
    file = tmp_path / f"{scorer_module}.py"
    file.write_text(file.read_text() + "# changed, and longer\n")
    del sys.modules[scorer_module]
    assert scorer_key(f"{scorer_module}:length") != before


def test_a_scorer_without_source_has_a_key() -> None:
    assert scorer_key("math:fsum").startswith("math:fsum ")


def test_rows_of_ones_own_are_split_into_training_and_validation(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", 20)
    source = build_source(config(train_files=path, test_files=path, valid_rows=3), embedded_model=False)
    assert (len(source.read("train")), len(source.read("valid")), len(source.read("test"))) == (17, 3, 20)
    assert not set(source.read("train")) & set(source.read("valid"))


def test_four_rows_are_too_few_without_a_validation_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", 4)
    with pytest.raises(DataError, match=r"at least five, got 4.*task\.valid_files"):
        build_source(config(train_files=path, test_files=path), embedded_model=False).read("train")
    source = build_source(config(train_files=path, valid_files=path, test_files=path), embedded_model=False)
    assert (len(source.read("train")), len(source.read("valid"))) == (4, 4)


def test_without_files_only_embedded_models_have_rows() -> None:
    assert build_source(config(valid_rows=7), embedded_model=True).name == "embedded"
    assert len(build_source(config(valid_rows=7), embedded_model=True).read("valid")) == 7
    with pytest.raises(DataError, match=r"needs your data.*task\.train_files"):
        build_source(config(), embedded_model=False)
