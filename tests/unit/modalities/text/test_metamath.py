import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from peftsweep.errors import DataError
from peftsweep.modalities.text import metamath
from peftsweep.modalities.text.answers import parse_answer
from peftsweep.modalities.text.metamath import build_source, in_metamath_words, judge, short_rows
from peftsweep.modalities.text.rows import Row
from peftsweep.modalities.text.settings import MetamathConfig

GSM8K_ANSWER = "She has 2*3=<<2*3=6>>6 bags.\nThat is 6*200=$<<6*200=1200>>1,200.\n#### 1,200"


def write_questions(path: Path, answers: Sequence[str]) -> str:
    records: list[dict[str, Any]] = [{"question": f"question {i}", "answer": a} for i, a in enumerate(answers)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def config(**changes: Any) -> MetamathConfig:
    return MetamathConfig(name="metamath", **changes)


def test_a_gsm8k_answer_ends_as_metamath_answers_do() -> None:
    assert in_metamath_words(GSM8K_ANSWER) == (
        "She has 2*3=6 bags.\nThat is 6*200=$1,200.\n#### 1,200\nThe answer is: 1,200"
    )


def test_the_answer_is_the_same_in_metamath_words() -> None:
    assert parse_answer(in_metamath_words(GSM8K_ANSWER)) == parse_answer(GSM8K_ANSWER) == "1200"


def test_a_row_of_exactly_the_limit_is_short() -> None:
    rows = [Row("abc", "def"), Row("abc", "defg")]  # 7 and 8 characters with the blank
    assert short_rows(rows, 7) == rows[:1]
    assert short_rows(rows, None) == rows


def test_an_answer_is_right_by_its_final_number() -> None:
    row = Row("How much?", GSM8K_ANSWER)
    assert judge(row, "Well, 6 * 200. The answer is: 1200").values == {"accuracy": 1.0}
    wrong = judge(row, "The answer is: 1201")
    assert (wrong.parsed, wrong.values) == ("1201", {"accuracy": 0.0})
    assert judge(row, "I don't know").parsed is None


def test_test_rows_without_an_answer_are_refused_by_number(tmp_path: Path) -> None:
    files = {
        "train_files": write_questions(tmp_path / "train.jsonl", ["#### 1"] * 10),
        "test_files": write_questions(tmp_path / "test.jsonl", ["#### 1", "no idea", "#### 3", "four"]),
    }
    source = build_source(config(**files), embedded_model=False)
    assert len(source.read("train")) == 8
    with pytest.raises(DataError, match=r"rows \[2, 4\] have none.*task\.test_files"):
        source.read("test")


def test_validation_rows_are_held_out_of_the_training_file(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "train.jsonl", [f"#### {i}" for i in range(40)])
    source = build_source(config(train_files=path, test_files=path, valid_rows=6), embedded_model=False)
    assert (len(source.read("train")), len(source.read("valid"))) == (34, 6)
    assert not {row.prompt for row in source.read("train")} & {row.prompt for row in source.read("valid")}


def test_a_validation_file_leaves_the_training_file_whole(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "train.jsonl", ["#### 1"] * 3)
    valid = write_questions(tmp_path / "valid.jsonl", ["#### 2"] * 5)
    files = {"train_files": path, "valid_files": valid, "test_files": path}
    source = build_source(config(**files, valid_rows=4), embedded_model=False)
    assert (len(source.read("train")), len(source.read("valid"))) == (3, 4)


def test_too_short_a_character_limit_is_told(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "train.jsonl", ["#### 1"] * 10)
    source = build_source(config(train_files=path, test_files=path, max_characters=5), embedded_model=False)
    with pytest.raises(DataError, match=r"no training row is short enough.*task\.max_characters"):
        source.read("train")


@pytest.mark.parametrize(
    ("changes", "embedded_model", "expected"),
    [
        ({}, True, "embedded"),
        ({}, False, "hub"),
        ({"train_files": "a.jsonl", "test_files": "b.jsonl"}, True, "files"),
        ({"source": "embedded"}, False, "embedded"),
        ({"source": "hub"}, True, "hub"),
    ],
)
def test_auto_chooses_files_then_embedded_then_the_hub(
    changes: dict[str, str], embedded_model: bool, expected: str
) -> None:
    assert build_source(config(**changes), embedded_model=embedded_model).name == expected


def test_the_embedded_splits_are_disjoint() -> None:
    source = build_source(config(valid_rows=50), embedded_model=True)
    splits = [
        {row.prompt for row in rows} for rows in (source.read("train"), source.read("valid"), source.read("test"))
    ]
    assert [len(split) for split in splits] == [6000, 50, 300]
    assert len(set.union(*splits)) == 6350


def test_the_hub_gives_metamath_to_train_and_gsm8k_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def read(dataset: str, part: str | None, split: str, prompt: str, response: str) -> list[Row]:
        asked.append((dataset, part, split, prompt, response))
        return [Row(f"{dataset} {i}", GSM8K_ANSWER) for i in range(20)]

    monkeypatch.setattr(metamath, "_hub_rows", read)
    source = build_source(config(valid_rows=2), embedded_model=False)
    rows = {"train": source.read("train"), "valid": source.read("valid"), "test": source.read("test")}
    assert [len(split) for split in rows.values()] == [20, 2, 20]
    assert asked == [
        ("meta-math/MetaMathQA", None, "train", "query", "response"),
        ("openai/gsm8k", "main", "train", "question", "answer"),
        ("openai/gsm8k", "main", "test", "question", "answer"),
    ]
    assert all(row.response.endswith("The answer is: 1,200") for row in rows["valid"] + rows["test"])


def test_a_hub_that_cannot_be_reached_is_told_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"no route to host.*task\.train_files"):
        build_source(config(), embedded_model=False).read("train")


@pytest.fixture
def gsm8k() -> Path:
    folder = os.environ.get("PEFTSWEEP_GSM8K")
    if not folder:
        pytest.skip("PEFTSWEEP_GSM8K names no folder with the real train.jsonl and test.jsonl")
    return Path(folder)


def test_the_real_gsm8k_is_read_split_and_judged(gsm8k: Path) -> None:
    files = {"train_files": str(gsm8k / "train.jsonl"), "test_files": str(gsm8k / "test.jsonl")}
    source = build_source(config(**files, valid_rows=1000), embedded_model=False)
    train, valid, test = source.read("train"), source.read("valid"), source.read("test")
    assert (len(train), len(valid), len(test)) == (6473, 1000, 1319)  # 7,473 training rows, as published
    assert all(judge(row, row.response).values["accuracy"] == 1.0 for row in test)
    assert all(judge(row, in_metamath_words(row.response)).values["accuracy"] == 1.0 for row in test)
