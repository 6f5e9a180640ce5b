"""Labelled rows of the user's files."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from peftsweep.errors import DataError
from peftsweep.modalities.encoder.rows import LabelledRow, build_source
from peftsweep.modalities.encoder.settings import ClassifyConfig


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(**settings: Any) -> ClassifyConfig:
    return ClassifyConfig(name="classify", **settings)


def source(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    return build_source(config(train_files=write(tmp_path / "train.jsonl", rows), **settings), embedded_model=True)


REVIEWS = [{"sentence": f"film {number}", "label": ["bad", "good"][number % 2]} for number in range(20)]


def test_columns_are_known_by_their_names_and_classes_by_the_data(tmp_path: Path) -> None:
    found = source(tmp_path, REVIEWS)
    assert found.classes() == ["bad", "good"]
    assert found.read("train")[0] == LabelledRow("film 0", "", "bad")
    assert not found.is_number()


def test_classes_that_are_whole_numbers_are_in_their_order(tmp_path: Path) -> None:
    rows = [{"text": f"film {number}", "label": number % 12} for number in range(60)]
    assert source(tmp_path, rows).classes() == [str(number) for number in range(12)]


def test_whole_numbers_of_a_column_of_numbers_are_classes_where_they_are_asked(tmp_path: Path) -> None:
    rows = [{"text": f"film {number}", "label": float(number % 3)} for number in range(20)]
    assert source(tmp_path, rows, labels="classes").classes() == ["0", "1", "2"]


def test_labels_with_a_fraction_are_numbers(tmp_path: Path) -> None:
    found = source(tmp_path, [{"sequence": f"M {number}", "fitness": number / 7} for number in range(20)])
    assert found.is_number()
    assert found.classes() == []
    assert all(isinstance(row.label, float) for row in found.read("train"))


def test_a_second_text_is_taken_where_there_is_one(tmp_path: Path) -> None:
    rows = [{"premise": "a", "hypothesis": f"b{number}", "label": number % 2} for number in range(20)]
    assert source(tmp_path, rows).read("train")[0].pair.startswith("b")


def test_rows_are_held_out_for_validation_and_test_and_none_is_in_two_splits(tmp_path: Path) -> None:
    found = source(tmp_path, REVIEWS)
    splits = [{row.text for row in found.read(split)} for split in ("train", "valid", "test")]
    assert [len(split) for split in splits] == [13, 3, 4]
    assert len(set.union(*splits)) == 20


BAD: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "one class": ([{"text": f"{n}", "label": "good"} for n in range(9)], {}, r"two classes.*got \['good'\]"),
    "no label": ([{"text": f"{n}", "stars": 1} for n in range(9)], {}, r"label.*task\.label_column"),
    "none left to train on": ([{"text": "same", "label": n % 2} for n in range(9)], {}, r"rows must differ"),
    "an empty label": ([*REVIEWS, {"sentence": "x", "label": ""}], {}, r"must hold text in every row.*21"),
    "a class where numbers are asked": (REVIEWS, {"labels": "number"}, r"must be a number, got 'bad'.*row 1"),
    "a number where classes are asked": (
        [{"text": f"{n}", "label": n / 2} for n in range(20)],
        {"labels": "classes"},
        r"whole number, got .*\.5.*row \d+.*task\.labels=number",
    ),
    "a column that there is not": (REVIEWS, {"text_column": "review"}, r"'review'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_told(case: str, tmp_path: Path) -> None:
    rows, settings, message = BAD[case]
    with pytest.raises(DataError, match=message):
        source(tmp_path, rows, **settings).require(["train", "valid", "test"])


def test_a_test_label_that_nobody_trains_on_is_told_with_its_row(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", [REVIEWS[0], {"sentence": "film", "label": "odd"}])
    with pytest.raises(DataError, match=r"training rows have, got 'odd'.*test\.jsonl, row 2"):
        source(tmp_path, REVIEWS, test_files=test).require(["train", "test"])


def test_without_data_the_embedded_claims_are_for_embedded_models_only() -> None:
    assert build_source(config(), embedded_model=True).classes() == [
        "not told",
        "told",
        "wrong detail",
        "wrong place",
        "wrong thing",
    ]
    with pytest.raises(DataError, match=r"task\.train_files"):
        build_source(config(), embedded_model=False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """What is asked of a hub that has GLUE's columns and a test split without labels."""
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(name: str, subset: str | None, split: str) -> datasets.Dataset:
        asked.append((name, subset, split))
        rows = [{"question": f"q {n} {split}", "sentence": f"s {n}", "label": n % 2, "idx": n} for n in range(30)]
        features = datasets.Features(
            question=datasets.Value("string"),
            sentence=datasets.Value("string"),
            label=datasets.ClassLabel(names=["entailment", "not_entailment"]),
            idx=datasets.Value("int32"),
        )
        return datasets.Dataset.from_list(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_of_the_hub_the_public_development_set_is_the_test_and_validation_is_cut_from_training(
    hub: list[tuple[str, str | None, str]],
) -> None:
    glue = config(dataset="nyu-mll/glue", subset="qnli", test_split="validation")
    found = build_source(glue, embedded_model=False)
    assert found.classes() == ["entailment", "not_entailment"]
    train, valid, test = (found.read(split) for split in ("train", "valid", "test"))
    assert (len(train), len(valid), len(test)) == (24, 6, 30)
    assert not {row.text for row in train} & {row.text for row in valid}
    assert all(row.text.endswith("validation") for row in test)
    assert all(row.pair.startswith("s ") for row in train)
    assert set(hub) == {("nyu-mll/glue", "qnli", "train"), ("nyu-mll/glue", "qnli", "validation")}
