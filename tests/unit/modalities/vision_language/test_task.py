"""The loader and the task, on tiny random models; transformers' own processor, loss and `generate` judge."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vlm import build_tiny_qwen_vl, save_tiny_vlm, write_questions
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from peftsweep.config.schema import HparamsConfig, MethodConfig
from peftsweep.errors import DataError, ModelError
from peftsweep.methods.attach import attach_method
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.order import split_rows
from peftsweep.modalities.vision_language.loader import load_vision_language_model
from peftsweep.modalities.vision_language.picture import open_picture
from peftsweep.modalities.vision_language.rows import pictures_of
from peftsweep.modalities.vision_language.settings import VlmConfig, VqaConfig
from peftsweep.modalities.vision_language.task import RIGHT, WRONG, VqaTask, answer_card

HPARAMS = HparamsConfig(batch_size=4, max_seq_length=64, eval_batch_size=5)
MOST_TOKENS = 8
FEW: dict[str, Any] = {"max_new_tokens": MOST_TOKENS, "general_rows": 3, "general_pictures": 2}
Build = Callable[..., VqaTask]


def load(folder: Path) -> BaseModel:
    spec = VlmConfig("tiny", "vision_language", str(folder), dtype="float32")
    return load_vision_language_model(spec, str(folder), torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def bases(folder: Path) -> dict[str, BaseModel]:
    return {"idefics3": load(folder), "qwen2.5-vl": build_tiny_qwen_vl()}


@pytest.fixture(params=["idefics3", "qwen2.5-vl"])
def base(bases: dict[str, BaseModel], request: pytest.FixtureRequest) -> BaseModel:
    return bases[request.param]


@pytest.fixture
def build(base: BaseModel, tmp_path: Path) -> Build:
    def build(hparams: HparamsConfig = HPARAMS, path: Path | None = None, **settings: Any) -> VqaTask:
        path = path or write_questions(tmp_path / "data")
        config = VqaConfig(name="vqa", train_files=str(path), **FEW | settings)
        return VqaTask(config, hparams, base, tmp_path)

    return build


def test_a_prompt_has_the_tokens_of_the_processors_own(
    build: Build, bases: dict[str, BaseModel], base: BaseModel
) -> None:
    rows, tokens = build()._split("train")
    processor = base.processor
    for number in (0, 3, 7):
        asked = [{"type": "image"}, {"type": "text", "text": rows[number].prompt}]
        turn = {"role": "user", "content": asked}
        text = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
        own = processor(text=[text], images=[[open_picture(pictures_of(rows[number])[0])]])
        assert tokens.prompt(number) == list(own["input_ids"][0])


def test_pictures_of_like_kind_take_as_many_tokens_as_their_size_says(
    build: Build, bases: dict[str, BaseModel], base: BaseModel
) -> None:
    task = build()
    rows, _ = task._split("train")
    counts = {len(task._reader.ids(pictures_of(row)[0])) for row in rows}
    assert counts == {7} if base is bases["idefics3"] else len(counts) > 1


def test_the_loss_is_transformers_own_and_of_the_answer_alone(build: Build, base: BaseModel) -> None:
    task = build()
    batch = next(task.train_batches(4, seed=0))
    found = task.loss(base.model, batch).sum / task.targets(batch)
    assert torch.isclose(found, base.model(**batch).loss, rtol=1e-5)
    learnt = [base.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert all(text.split()[0] in ("red", "green", "blue", "black", "white") for text in learnt)
    assert task.targets(batch) == 8  # a word and the end, four times


def test_the_loss_sees_the_picture(build: Build, base: BaseModel) -> None:
    task = build()
    task._reader.look_with(None)
    batch = dict(next(task.train_batches(4, seed=0)))
    other = batch | {"pixel_values": batch["pixel_values"].flip(0)}
    assert not torch.isclose(task.loss(base.model, batch).sum, task.loss(base.model, other).sum)


def test_what_the_tower_made_of_pictures_stands_for_them(folder: Path, tmp_path: Path) -> None:
    """No picture is looked at twice, and a loss, a part of a batch and answers are those with the pictures."""
    base = load(folder)
    path = write_questions(tmp_path / "data")
    task = VqaTask(VqaConfig(name="vqa", train_files=str(path), **FEW), HPARAMS, base, tmp_path)
    looked: list[int] = []
    base.model.model.vision_model.register_forward_hook(lambda *call: looked.append(len(call[-1].last_hidden_state)))
    batches = task.train_batches(4, seed=0)
    kept = [next(batches) for _ in range(12)]
    assert sum(looked) == len({picture.name for row in task._split("train")[0] for picture in pictures_of(row)})
    losses = [task.loss(base.model, batch).sum for batch in kept]
    parts = [task.loss(base.model, task.rows(kept[0], rows)).sum for rows in ([2, 0], [3, 1])]
    answers = task.evaluate(base.model, "test").items
    task._reader.look_with(None)
    shown = task.train_batches(4, seed=0)
    assert torch.allclose(torch.stack([task.loss(base.model, next(shown)).sum for _ in kept]), torch.stack(losses))
    assert torch.isclose(torch.stack(parts).sum(), losses[0])
    assert task.evaluate(base.model, "test").items == answers


@pytest.mark.parametrize(("adapt", "is_kept"), [("language", True), ("language+connector", False), ("all", False)])
@pytest.mark.parametrize("peft_type", ["LORA", None])
def test_pictures_are_looked_at_anew_where_the_method_changes_what_sees_them(
    folder: Path, tmp_path: Path, adapt: str, is_kept: bool, peft_type: str | None
) -> None:
    base = load(folder)
    path = write_questions(tmp_path / "data")
    task = VqaTask(VqaConfig(name="vqa", train_files=str(path), **FEW), HPARAMS, base, tmp_path)
    method = MethodConfig(name="m", peft_type=peft_type, peft={"target_modules": "all-linear"} if peft_type else {})
    attached = attach_method(base.model, method, total_steps=1, adapt=adapt)
    task.prepare(attached.model)
    batch = next(task.train_batches(2, seed=0))
    assert ("pixel_values" not in batch) is is_kept
    task.loss(attached.model, batch).sum.backward()
    sees = [weight.grad for name, weight in attached.model.named_parameters() if "connector" in name]
    assert any(gradient is not None for gradient in sees) is not is_kept


def test_parts_of_a_batch_have_its_loss(build: Build, base: BaseModel) -> None:
    task = build()
    batch = next(task.train_batches(4, seed=0))
    parts = [task.rows(batch, rows) for rows in split_rows(task.lengths(batch), 45)]
    assert len(parts) == 2
    assert sum(map(task.tokens, parts)) == task.tokens(batch)
    whole = task.loss(base.model, batch).sum.item()
    assert sum(task.loss(base.model, part).sum.item() for part in parts) == pytest.approx(whole, rel=1e-5)


def test_answers_are_those_of_generate_one_by_one(build: Build, base: BaseModel) -> None:
    task = build()
    found = task.evaluate(base.model, "test")
    _, tokens = task._split("test")
    config = GenerationConfig(
        do_sample=False,
        eos_token_id=base.tokenizer.eos_token_id,
        pad_token_id=base.tokenizer.pad_token_id,
        max_new_tokens=MOST_TOKENS,
    )
    for number, item in enumerate(found.items):
        ids = torch.tensor([tokens.prompt(number)])
        given = tokens.given([number], ids)
        alone = base.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **given, generation_config=config
        )
        assert item["generated"] == base.tokenizer.decode(alone[0, ids.shape[1] :], skip_special_tokens=True)
    assert len({item["generated"] for item in found.items}) > 1


def test_items_keep_the_picture_and_the_score_has_an_interval(build: Build, base: BaseModel) -> None:
    found = build().evaluate(base.model, "test")
    assert found.items[0].keys() == {"picture", "prompt", "target", "generated", "parsed", "correct"}
    assert Path(found.items[0]["picture"]).is_file()
    low, high = found.intervals["exact_match"]
    assert low <= found.metrics["exact_match"] <= high
    assert found.metrics["loss"] > 0


def test_a_sheet_shows_pictures_and_answers_of_both(build: Build, base: BaseModel) -> None:
    from PIL import Image

    from peftsweep.report.page.gallery import cut_sheet

    task = build()
    found = task.evaluate(base.model, "test")
    sheet = task.pictures(found, found)["contact_sheet"]
    cut = cut_sheet(Image.fromarray(sheet))
    assert cut is not None
    assert {name: len(pictures) for name, pictures in cut.columns.items()} == {"base": 6, "adapted": 6, "photo": 6}


def test_an_answers_card_tells_right_from_wrong() -> None:
    assert tuple(answer_card("red", right=True)[0, 0]) == RIGHT
    assert tuple(answer_card("red", right=False)[0, 0]) == WRONG
    assert answer_card("", right=None).shape == (192, 192, 3)


def test_forgetting_is_of_text_and_of_captions(build: Build, base: BaseModel) -> None:
    task = build()
    before = task.measure_retention(base.model)
    after = {"text": before["text"] + 0.5, "captions": before["captions"] + 0.25}
    found = task.compare_retention(before, after)
    assert found == pytest.approx({"forgetting_nats": 0.5, "forgetting_caption_nats": 0.25})
    without = build(general_rows=0, general_pictures=0)
    nothing = without.measure_retention(base.model)
    assert without.compare_retention(nothing, nothing) == {}


def test_test_items_are_the_same_for_jobs_that_are_asked_the_same(build: Build) -> None:
    first = build().test_fingerprint()
    assert build(train_rows=8).test_fingerprint() == first
    assert build(max_new_tokens=9).test_fingerprint() != first
    assert build(judge="anls").test_fingerprint() != first


def test_more_pictures_than_a_row_may_have_tokens_are_refused(build: Build, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "many")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["image"] = ["29.png"] * 40
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = build(path=path)
    rows = [row for split in ("train", "valid", "test") for row in task._source.read(split)]
    with pytest.raises(DataError, match=r"40.*max_seq_length.*row 3"):
        task._tokens_of("train", rows)


def test_a_question_with_a_pictures_token_in_it_is_refused(build: Build, base: BaseModel, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "odd")
    path.write_text(path.read_text().replace("What colour is it?", f"What is {base.processor.image_token}?"))
    task = build(path=path)
    with pytest.raises(DataError, match="stands for a picture"):
        task._split("train")


def test_several_pictures_of_a_row_are_given_in_their_order(build: Build, base: BaseModel, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "two")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["image"] = [row["image"], "00.png"][: 1 + number % 2]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = build(path=path)
    batch = next(task.train_batches(6, seed=0))
    whole = task.loss(base.model, batch).sum.item()
    alone = [task.loss(base.model, task.rows(batch, [row])).sum.item() for row in range(6)]
    assert sum(alone) == pytest.approx(whole, rel=1e-4)


def test_rows_that_the_models_positions_do_not_hold_are_refused(tmp_path: Path) -> None:
    narrow = load(save_tiny_vlm(tmp_path / "narrow", positions=20))
    config = VqaConfig(name="vqa", train_files=str(write_questions(tmp_path / "data")), max_new_tokens=MOST_TOKENS)
    with pytest.raises(DataError, match="20 positions"):
        VqaTask(config, HPARAMS, narrow, tmp_path)._split("test")


def test_a_model_of_text_alone_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"read pictures.*llama"):
        load(tmp_path)


def test_a_model_without_its_processor_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if "processor" not in path.name:
            shutil.copy(path, tmp_path)
    with pytest.raises(ModelError, match="processor"):
        load(tmp_path)


def test_a_processor_without_a_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    base = load(folder)
    base.processor.chat_template = None
    config = VqaConfig(name="vqa", train_files=str(write_questions(tmp_path)))
    with pytest.raises(DataError, match="chat template"):
        VqaTask(config, HPARAMS, base, tmp_path)._split("train")


def test_nobody_hears_of_a_missing_torchvision(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="transformers"):
        load(folder)
    assert "torchvision" not in caplog.text


@pytest.mark.parametrize(
    ("adapt", "reached"),
    [
        ("language", {"text_model"}),
        ("language+connector", {"text_model", "connector"}),
        ("all", {"text_model", "connector", "vision_model"}),
    ],
)
@pytest.mark.parametrize("peft_type", ["LORA", None])
def test_adapt_says_which_parts_change(folder: Path, adapt: str, reached: set[str], peft_type: str | None) -> None:
    method = MethodConfig(name="m", peft_type=peft_type, capacity=2, peft={"r": 2} if peft_type else {})
    attached = attach_method(load(folder).model, method, total_steps=1, adapt=adapt)
    parts = {"text_model", "connector", "vision_model"}
    found = {part for name in attached.trainable_parameters() for part in parts if part in name.split(".")}
    assert found == reached


def test_all_linear_layers_are_those_of_the_language_model(folder: Path) -> None:
    method = MethodConfig(name="m", peft_type="LORA", peft={"r": 2, "target_modules": "all-linear"})
    attached = attach_method(load(folder).model, method, total_steps=1, adapt="language")
    names = {name for name in attached.trainable_parameters() if "lora_A" in name}
    assert len(names) == 14  # seven layers in each of two blocks
    assert all("text_model" in name for name in names)
