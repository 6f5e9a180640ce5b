"""Words with tags: rows, the first token of each word, the loss, and what is counted as found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_encoder import save_tiny_encoder
from transformers import AutoModelForTokenClassification

from peftsweep.config.schema import HparamsConfig, MethodConfig
from peftsweep.errors import ConfigError, DataError
from peftsweep.methods.attach import attach_method
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.encoder.labels import IGNORED
from peftsweep.modalities.encoder.loader import load_encoder
from peftsweep.modalities.encoder.rows import LabelledRow, build_source, rows_of
from peftsweep.modalities.encoder.settings import EncoderConfig, TagConfig
from peftsweep.modalities.encoder.task import LabelTask

CPU = torch.device("cpu")
HPARAMS = HparamsConfig(batch_size=4, max_seq_length=16, eval_batch_size=3)
ROWS = [
    {"tokens": ["the", word, "film", str(number)], "tags": ["O", "B-KIND", "I-KIND", "B-YEAR"]}
    for number in range(12)
    for word in ("good", "bad")
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(**settings: Any) -> TagConfig:
    return TagConfig(name="tag", **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def base(folder: Path) -> BaseModel:
    spec = EncoderConfig("tiny", "encoder", str(folder), dtype="float32", label_of="word")
    return load_encoder(spec, str(folder), CPU)


@pytest.fixture
def build(base: BaseModel, tmp_path: Path) -> Callable[..., LabelTask]:
    def build(rows: list[dict[str, Any]] = ROWS, hparams: HparamsConfig = HPARAMS, **settings: Any) -> LabelTask:
        task = config(train_files=write(tmp_path / "train.jsonl", rows), **settings)
        return LabelTask(task, hparams, build_source(task, embedded_model=False), base)

    return build


def source(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    return build_source(config(train_files=write(tmp_path / "train.jsonl", rows), **settings), embedded_model=True)


def test_the_head_has_a_row_for_each_tag(build: Callable[..., LabelTask], base: BaseModel) -> None:
    assert build().score == "entity_f1"
    model: Any = base.model
    assert type(model).__name__ == "BertForTokenClassification"
    assert model.config.id2label == {0: "B-KIND", 1: "B-YEAR", 2: "I-KIND", 3: "O"}


def test_a_word_is_labelled_at_its_first_token(build: Callable[..., LabelTask], base: BaseModel) -> None:
    years = [{"tokens": ["the", "1-2", ".", str(n)], "tags": ["O", "B-YEAR", "O", "O"]} for n in range(9)]
    task = build(years + ROWS)
    rows, read = task._split("train")
    place = next(place for place, row in enumerate(rows) if row.text[1] == "1-2")
    assert base.tokenizer.convert_ids_to_tokens(read[place].inputs["input_ids"])[1:3] == ["the", "1"]
    assert read[place].words == (1, 2, 5, 6)
    labels = task._collate([read[place]], [rows[place]])["labels"]
    assert labels.tolist() == [[IGNORED, 3, 1, IGNORED, IGNORED, 3, 3, IGNORED]]


def test_the_loss_is_transformers_own(build: Callable[..., LabelTask], base: BaseModel) -> None:
    task = build()
    batch = next(task.train_batches(4, seed=0))
    assert task.targets(batch) == 16
    assert task.loss(base.model, batch).sum.item() / 16 == pytest.approx(base.model(**batch).loss.item(), rel=1e-5)


def test_what_is_found_doesn_t_depend_on_the_batch(build: Callable[..., LabelTask], base: BaseModel) -> None:
    found = build().evaluate(base.model, "test")
    assert found.metrics.keys() == found.intervals.keys() | {"loss"} == {"accuracy", "entity_f1", "loss"}
    for item in found.items:
        alone = base.tokenizer(item["text"].split(), is_split_into_words=True, return_tensors="pt")
        best = base.model(**alone).logits[0, 1:5].argmax(dim=1)
        assert item["predicted"].split() == [base.model.config.id2label[int(number)] for number in best]
        assert item["correct"] == (item["predicted"] == item["target"])


def test_words_that_are_cut_off_count_as_not_found(
    build: Callable[..., LabelTask], base: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    task = build(hparams=HparamsConfig(max_seq_length=8, eval_batch_size=3))
    object.__setattr__(task._hparams, "max_seq_length", 4)  # two words
    found = task.evaluate(base.model, "test")
    assert all(item["predicted"].endswith(" - -") and not item["correct"] for item in found.items)
    assert found.metrics["accuracy"] <= 0.5
    assert "are cut" in caplog.text


def test_tags_that_are_no_entities_are_judged_word_by_word(build: Callable[..., LabelTask]) -> None:
    rows = [{"words": f"the film {number}", "pos_tags": "DET NOUN NUM"} for number in range(20)]
    task = build(rows)
    assert task.score == "accuracy"
    with pytest.raises(ConfigError, match=r"must be one of accuracy for such labels, got 'entity_f1'"):
        build(rows, score="entity_f1")


def test_an_adapter_and_its_head_answer_alike_in_plain_transformers(
    build: Callable[..., LabelTask], base: BaseModel, folder: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    task = build()
    method = MethodConfig("lora", "LORA", peft={"r": 4, "target_modules": ["query", "value"]})
    attached = attach_method(base.model, method, total_steps=2, task_type="TOKEN_CLS", heads=task.add_heads(base.model))
    attached.save(tmp_path / "saved")
    plain = AutoModelForTokenClassification.from_pretrained(folder, num_labels=4)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "saved").eval()
    inputs = base.tokenizer(["the", "good", "film"], is_split_into_words=True, return_tensors="pt")
    assert torch.allclose(loaded(**inputs).logits, attached.model.eval()(**inputs).logits, atol=1e-5)


def test_a_csv_file_holds_words_and_tags_parted_by_blanks(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("words,tags\n" + "".join(f"the film {n},O O B-YEAR\n" for n in range(9)))
    found = build_source(config(train_files=str(path)), embedded_model=True)
    assert found.classes() == ["B-YEAR", "O"]
    assert found.read("train")[0].text[:2] == ("the", "film")


def test_tags_that_a_dataset_holds_as_numbers_are_told_by_name_and_empty_rows_are_left_out() -> None:
    tags = datasets.List(datasets.ClassLabel(names=["O", "B-PER"]))
    features = datasets.Features(tokens=datasets.List(datasets.Value("string")), ner_tags=tags)
    rows = {"tokens": [["Mia", "sings"], []], "ner_tags": [[1, 0], []]}
    table = datasets.Dataset.from_dict(rows, features=features)
    assert rows_of(table, Path("hub"), config()) == [LabelledRow(("Mia", "sings"), "", ("B-PER", "O"))]


BAD: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "words and tags of different length": (
        [*ROWS, {"tokens": ["the", "film"], "tags": ["O"]}],
        {},
        r"one tag, got '2 words and 1 tags'.*train\.jsonl, row 25",
    ),
    "one tag only": ([{"tokens": ["a", str(n)], "tags": ["O", "O"]} for n in range(9)], {}, r"two classes.*\['O'\]"),
    "no column of tags": ([{"tokens": ["a"], "label_ids": ["O"]} for _ in range(9)], {}, r"task\.label_column"),
    "a word that is empty": (
        [*ROWS, {"tokens": ["the", ""], "tags": ["O", "O"]}],
        {},
        r"'tokens' must hold a list.*25",
    ),
    "another column": (ROWS, {"words_column": "text"}, r"column 'text'.*task\.words_column"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_told(case: str, tmp_path: Path) -> None:
    rows, settings, message = BAD[case]
    with pytest.raises(DataError, match=message):
        source(tmp_path, rows, **settings).require(["train", "valid", "test"])


def test_a_test_tag_that_nobody_trains_on_is_told_with_its_row(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", [ROWS[0], {"tokens": ["Mia"], "tags": ["B-PERSON"]}])
    with pytest.raises(DataError, match=r"training rows have, got 'B-PERSON'.*test\.jsonl, row 2"):
        source(tmp_path, ROWS, test_files=test).require(["train", "test"])
