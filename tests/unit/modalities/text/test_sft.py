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


@pytest.mark.parametrize("embedded_model", [True, False])
def test_stories_are_trained_on_only_where_they_are_asked_for(embedded_model: bool) -> None:
    with pytest.raises(DataError, match=r"needs your data.*task\.train_files"):
        build_source(config(), embedded_model=embedded_model)
    asked = build_source(config(source="embedded", valid_rows=7), embedded_model=embedded_model)
    assert (asked.name, len(asked.read("valid"))) == ("embedded", 7)


def test_training_rows_alone_give_all_splits_which_share_no_question(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    records = [{"prompt": f"prompt {number % 80}", "response": f"response {number}"} for number in range(100)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = build_source(config(train_files=str(path), valid_rows=10), embedded_model=False)
    splits = {split: {row.prompt for row in source.read(split)} for split in ("train", "valid", "test")}
    assert [len(source.read(split)) for split in ("valid", "test")] == [10, 20]
    assert not splits["train"] & splits["test"]
    assert not splits["train"] & splits["valid"]
    assert not splits["valid"] & splits["test"]
    assert source.read("test") == source.read("test") != source.read("test")[::-1]
    assert source.origin("test") == f"{path}, drawn at random with seed 0 (prompt from prompt, response from response)"


@pytest.mark.parametrize(("value", "reason"), [("1 / 0", "ZeroDivisionError.*line 2"), ("float('nan')", "gave nan")])
def test_a_scorer_that_gives_no_number_is_refused_with_what_it_was_asked(
    value: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_scorer.py").write_text(f"def score(prompt, target, generated):\n    return {value}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_scorer", raising=False)
    with pytest.raises(ConfigError, match=f"must give a number.*{reason}.*'Good morning'"):
        build_judging(SftConfig(scorer="broken_scorer:score")).judge(ROW, "Bonjour")
