"""The loader and the task, on a tiny encoder with random weights."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_encoder import save_tiny_encoder
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from peftsweep.config.schema import HparamsConfig, MethodConfig
from peftsweep.errors import MethodError, ModelError
from peftsweep.methods.attach import attach_method, build_optimizer
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.encoder.labels import IGNORED
from peftsweep.modalities.encoder.loader import EncoderParts, load_encoder
from peftsweep.modalities.encoder.rows import build_source
from peftsweep.modalities.encoder.settings import ClassifyConfig, EncoderConfig
from peftsweep.modalities.encoder.task import LabelTask

CPU = torch.device("cpu")
ROWS = [{"text": f"the film was {word} {n}", "label": word} for n in range(30) for word in ("good", "bad", "fine")]
HPARAMS = HparamsConfig(batch_size=8, max_seq_length=16, eval_batch_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def base(folder: Path) -> BaseModel:
    return load_encoder(EncoderConfig("tiny", "encoder", str(folder), dtype="float32"), str(folder), CPU)


@pytest.fixture
def build(base: BaseModel, tmp_path: Path) -> Callable[..., LabelTask]:
    def build(rows: list[dict[str, Any]] = ROWS, **settings: Any) -> LabelTask:
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = ClassifyConfig(name="classify", train_files=str(path), **settings)
        return LabelTask(config, HPARAMS, build_source(config, embedded_model=False), base)

    return build


def numbers() -> list[dict[str, Any]]:
    return [{"text": f"film {n}", "label": n / 7} for n in range(40)]


def test_the_head_has_a_row_for_each_class_and_says_their_names(
    build: Callable[..., LabelTask], base: BaseModel
) -> None:
    build()
    model: Any = base.model
    assert model.classifier.out_features == 3
    assert model.config.id2label == {0: "bad", 1: "fine", 2: "good"}
    assert not any(weight.is_meta for weight in model.parameters())


def test_a_head_follows_the_seed(build: Callable[..., LabelTask], base: BaseModel) -> None:
    task, model = build(), base.model
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        assert task.add_heads(model) == ("classifier", "pooler")
        heads.append(copy.deepcopy(model.classifier.weight))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_loss_is_transformers_own(build: Callable[..., LabelTask], base: BaseModel) -> None:
    task = build()
    batch = next(task.train_batches(8, seed=0))
    assert task.loss(base.model, batch).sum.item() / 8 == pytest.approx(base.model(**batch).loss.item(), rel=1e-5)
    assert (task.targets(batch), task.tokens(batch)) == (8, int(batch["attention_mask"].sum()))


def test_numbers_are_learnt_around_their_mean_and_told_as_they_were(
    build: Callable[..., LabelTask], base: BaseModel
) -> None:
    task = build(numbers())
    labels = torch.cat([next(task.train_batches(8, seed))["labels"] for seed in range(20)])
    assert labels.mean().abs() < 0.5
    assert labels.std() == pytest.approx(1, abs=0.3)
    with torch.no_grad():
        base.model.classifier.weight.zero_()
        base.model.classifier.bias.zero_()
    found = task.evaluate(base.model, "test")
    told = [row["label"] for row in numbers()]
    assert found.metrics["spearman"] == 0.0
    assert min(told) < found.items[0]["predicted"] < max(told)


def test_scores_are_of_the_rows_in_their_order_whatever_the_batch(
    build: Callable[..., LabelTask], base: BaseModel
) -> None:
    task = build()
    found = task.evaluate(base.model, "test")
    assert found.metrics.keys() == {"accuracy", "f1_macro", "matthews", "loss"}
    for item in found.items:
        alone = base.tokenizer(item["text"], return_tensors="pt")
        shares = base.model(**alone).logits.softmax(dim=1)[0].tolist()
        assert list(item["probabilities"].values()) == pytest.approx(shares, abs=1e-3)
        assert item["correct"] == (item["target"] == item["predicted"])


def test_what_the_checkpoint_knew_of_hidden_words_is_what_its_own_model_says(
    build: Callable[..., LabelTask], base: BaseModel, folder: Path
) -> None:
    task = build()
    batches = task._general_batches()
    own = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        sums = [own(**batch).loss.item() * int((batch["labels"] != IGNORED).sum()) for batch in batches]
    words = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
    assert task.measure_retention(base.model) == pytest.approx(sum(sums) / words, rel=1e-5)


def test_without_such_a_head_it_is_told_how_far_features_have_moved(
    build: Callable[..., LabelTask], base: BaseModel
) -> None:
    object.__setattr__(base, "parts", EncoderParts(None, base.parts.heads))
    task = build()
    before = task.measure_retention(base.model)
    assert task.compare_retention(before, task.measure_retention(base.model))["feature_drift"] == pytest.approx(
        0, abs=1e-6
    )
    with torch.no_grad():
        base.model.bert.encoder.layer[1].output.dense.weight.normal_()
    assert 0.01 < task.compare_retention(before, task.measure_retention(base.model))["feature_drift"] < 2


@pytest.mark.parametrize(
    "method",
    [
        MethodConfig("lora", "LORA", peft={"r": 4, "target_modules": ["query", "value"]}),
        MethodConfig("head", trains="head"),
        MethodConfig("full"),
    ],
    ids=lambda method: method.name,
)
def test_every_method_trains_the_head_at_its_own_rate(
    method: MethodConfig, build: Callable[..., LabelTask], base: BaseModel, folder: Path, tmp_path: Path
) -> None:
    task = build()
    heads = task.add_heads(base.model)
    attached = attach_method(base.model, method, total_steps=2, task_type="SEQ_CLS", heads=heads)
    optimizer = build_optimizer(attached, "AdamW", lr=1e-3, weight_decay=0.0, head_lr=5e-2)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    in_head = {id(weight) for weight in attached.head_parameters().values()}
    assert len(in_head) == 4
    own_rate = 1e-3 if method.name == "head" else 5e-2  # alone, the head is what the method's rate is for
    assert rates == {
        id(weight): own_rate if id(weight) in in_head else 1e-3 for weight in attached.trainable_parameters().values()
    }
    assert (set(rates) == in_head) == (method.name == "head")
    batch = next(task.train_batches(8, seed=0))
    task.loss(attached.model, batch).sum.backward()
    optimizer.step()
    attached.save(tmp_path / "saved")
    plain = AutoModelForSequenceClassification.from_pretrained(
        folder if method.peft_type else tmp_path / "saved", num_labels=3
    )
    loaded = PeftModel.from_pretrained(plain, tmp_path / "saved") if method.peft_type else plain
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    attached.model.eval()
    assert torch.allclose(loaded.eval()(**inputs).logits, attached.model(**inputs).logits, atol=1e-5)


def with_virtual_tokens(base: BaseModel, task: LabelTask, tokens: int, peft_type: str = "PROMPT_TUNING") -> Any:
    method = MethodConfig("prompt-tuning", peft_type, peft={"num_virtual_tokens": tokens})
    heads = task.add_heads(base.model)
    return attach_method(base.model, method, total_steps=2, task_type="SEQ_CLS", heads=heads).model


@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_what_virtual_tokens_do_to_hidden_words_counts_as_forgetting(
    peft_type: str, build: Callable[..., LabelTask], base: BaseModel
) -> None:
    task = build()
    before = task.measure_retention(base.model)
    model = with_virtual_tokens(base, task, 3, peft_type)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "prompt_encoder" in name:
                weight.normal_(std=3.0)
    assert abs(task.compare_retention(before, task.measure_retention(model))["forgetting_mlm_nats"]) > 1e-3


def test_virtual_tokens_must_leave_room_for_the_longest_row(build: Callable[..., LabelTask], base: BaseModel) -> None:
    task = build(general_rows=0)
    longest = task.longest_training_row()
    task.prepare(with_virtual_tokens(base, task, 64 - longest))
    with pytest.raises(
        MethodError, match=rf"longest text, {longest} tokens.*64 positions.*method\.capacity={64 - longest}"
    ):
        task.prepare(with_virtual_tokens(base, task, 65 - longest))
    with pytest.raises(MethodError, match=r"longest text, 16 tokens"):  # of general text
        build().prepare(with_virtual_tokens(base, task, 50))


def test_a_model_that_reads_from_left_to_right_only_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"must be an encoder, got 'llama'"):
        load_encoder(EncoderConfig("tiny", "encoder", str(tmp_path), dtype="float32"), str(tmp_path), CPU)
