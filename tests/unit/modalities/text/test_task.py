"""What is particular to text tasks; what they share with all tasks is in tests/contract/test_tasks.py."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peftsweep.config.schema import HparamsConfig
from peftsweep.errors import DataError
from peftsweep.modalities.base import BaseModel, Batch, BatchLoss
from peftsweep.modalities.text.judging import Judgement, Judging
from peftsweep.modalities.text.pocket import LLAMA_FOLDER
from peftsweep.modalities.text.rows import Row, Source
from peftsweep.modalities.text.settings import TextTaskConfig
from peftsweep.modalities.text.task import MOST_PADDING_TOKENS, TextTask, alike_in_length

LONG = Row("Mia has four shells and gives one to Omar. " * 4, "Three")
SHORT = [Row(f"Is {number} more?", f"Yes, {number} is.") for number in range(6)]


def judge(row: Row, generated: str) -> Judgement:
    return Judgement(None, {"accuracy": float(row.response in generated)})


@pytest.fixture(scope="module")
def base() -> BaseModel:
    tokenizer = AutoTokenizer.from_pretrained(LLAMA_FOLDER)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes))
    return BaseModel(model.requires_grad_(False).eval(), tokenizer, "toy", is_embedded=True)


@pytest.fixture
def build(base: BaseModel, tmp_path: Path) -> Callable[..., TextTask]:
    passages = tmp_path / "general.jsonl"
    passages.write_text('{"text": "A passage."}\n{"text": "Another."}\n')

    def with_rows(judging: Judging | None = None, max_seq_length: int = 40, **splits: list[Row]) -> TextTask:
        rows = {"train": SHORT, "valid": SHORT, "test": SHORT} | splits
        source = Source("toy", lambda split: list(rows[split]), lambda split: "toy")
        config = TextTaskConfig(
            "toy", template="{prompt}\n", loss_on="all", max_new_tokens=4, general_text=str(passages), general_rows=2
        )
        hparams = HparamsConfig(max_seq_length=max_seq_length, bucket_batches=2, eval_batch_size=3)
        judging = judging or Judging(judge, "toy judge", version=1, score="accuracy")
        return TextTask(config, hparams, source, judging, base, tmp_path)

    return with_rows


def trained_prompts(task: TextTask, base: BaseModel, count: int) -> set[str]:
    batches = islice(task.train_batches(batch_size=2, seed=0), count)
    texts = [base.tokenizer.decode(ids, skip_special_tokens=True) for batch in batches for ids in batch["input_ids"]]
    return {text.splitlines()[0] for text in texts}


def test_training_leaves_out_rows_whose_prompt_fills_the_limit(
    build: Callable[..., TextTask], base: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    task = build(train=[LONG, *SHORT])
    with caplog.at_level(logging.WARNING):
        assert trained_prompts(task, base, count=9) == {row.prompt for row in SHORT}
    assert "1 of 7 train rows are left out of training" in caplog.text


def test_a_long_prompt_is_told_again_when_tokens_come_from_the_cache(
    build: Callable[..., TextTask], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        next(build(train=[LONG, *SHORT]).train_batches(2, 0))
    assert caplog.text.count("left out of training") == 2


def test_a_test_item_with_a_long_prompt_is_asked_whole_in_its_place(
    build: Callable[..., TextTask], base: BaseModel
) -> None:
    rows = [SHORT[0], LONG, *SHORT[1:]]
    items = build(test=rows).evaluate(base.model, "test").items
    roomy = build(test=rows, max_seq_length=500).evaluate(base.model, "test").items
    assert [item["prompt"] for item in items] == [row.prompt for row in rows]
    assert [item["generated"] for item in items] == [item["generated"] for item in roomy]


def test_the_test_loss_is_that_of_rows_with_room_for_a_response(
    build: Callable[..., TextTask], base: BaseModel
) -> None:
    with_long = build(test=[SHORT[0], LONG, *SHORT[1:]]).evaluate(base.model, "test").metrics["loss"]
    assert with_long == pytest.approx(build().evaluate(base.model, "test").metrics["loss"], rel=1e-6)


def test_a_split_of_long_prompts_only_is_refused(build: Callable[..., TextTask]) -> None:
    for split in ("train", "valid"):
        with pytest.raises(DataError, match=rf"some {split} row's prompt.*hparams\.max_seq_length"):
            next(build(**{split: [LONG]}).train_batches(2, 0))


def test_a_test_split_of_long_prompts_has_a_score_but_no_loss(build: Callable[..., TextTask], base: BaseModel) -> None:
    metrics = build(test=[LONG]).evaluate(base.model, "test").metrics
    assert metrics["accuracy"] == 0.0
    assert math.isnan(metrics["loss"])


def test_unusable_validation_rows_end_a_job_before_its_first_batch(build: Callable[..., TextTask]) -> None:
    def refuse(split: str) -> list[Row]:
        if split == "valid":
            raise DataError("no validation rows")
        return [SHORT]

    task = build()
    task._source = replace(task._source, read=refuse)
    with pytest.raises(DataError, match="no validation rows"):
        next(task.train_batches(2, 0))


def test_another_judge_makes_another_fingerprint(build: Callable[..., TextTask]) -> None:
    judgings = [Judging(judge, "toy judge", 1, "accuracy"), Judging(judge, "other judge", 1, "accuracy")]
    judgings.append(Judging(judge, "toy judge", 2, "accuracy"))
    assert len({build(judging).test_fingerprint() for judging in judgings}) == 3


def test_items_and_scores_follow_the_judge(build: Callable[..., TextTask], base: BaseModel) -> None:
    def marks(row: Row, generated: str) -> Judgement:
        right = row is SHORT[0] or row == SHORT[0]
        return Judgement("read", {"score": 0.25 + right, "exact_match": float(right)})

    evaluation = build(Judging(marks, "marks", 1, "score")).evaluate(base.model, "test")
    assert evaluation.metrics["exact_match"] == pytest.approx(1 / 6)
    assert evaluation.metrics["score"] == pytest.approx(0.25 + 1 / 6)
    assert [item["correct"] for item in evaluation.items] == [True] + [False] * 5
    assert evaluation.items[1]["score"] == 0.25
    assert evaluation.items[1]["parsed"] == "read"


def test_training_is_watched_on_a_fixed_quarter_of_the_rows_and_judged_on_all(
    base: BaseModel, build: Callable[..., TextTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, seen = build(), []
    monkeypatch.setattr(task, "_split", lambda split: ([], Rows(1000)))
    monkeypatch.setattr(task, "_mean_loss", lambda model, tokens, which, doing: seen.append(list(which)) or 0.0)
    for whole in (False, False, True):
        task.validate(base.model, whole=whole)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 256
    assert max(seen[0]) > 990
    assert seen[2] == list(range(1000))


@dataclass
class Rows:
    """As many rows with a response as it says."""

    count: int

    def with_response(self) -> list[int]:
        return list(range(self.count))


@pytest.mark.parametrize("most_rows", [1, 2])
def test_held_out_losses_take_fewer_rows_where_memory_runs_out(
    most_rows: int, base: BaseModel, build: Callable[..., TextTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, seen = build(), []
    whole = task.loss

    def loss(model: nn.Module, batch: Batch) -> BatchLoss:
        seen.append(len(batch["labels"]))
        if seen[-1] > most_rows:
            raise RuntimeError("CUDA error: out of memory")
        return whole(model, batch)

    expected = task.validate(base.model, whole=True)
    monkeypatch.setattr(task, "loss", loss)
    assert task.validate(base.model, whole=True)["valid/loss"] == pytest.approx(expected["valid/loss"], rel=1e-6)
    assert seen[0] == 3
    assert set(seen[1:]) == {1}


def test_rows_go_through_together_while_little_of_it_is_padding() -> None:
    lengths = [MOST_PADDING_TOKENS + 8, MOST_PADDING_TOKENS + 8, 9, 8, 8]
    rows = sorted(range(5), key=lambda row: -lengths[row])
    assert alike_in_length(rows, lengths) == [0, 1, 2]
    assert alike_in_length(rows[3:], lengths) == [3, 4]
    assert alike_in_length([0], lengths) == [0]


def test_memory_that_is_not_enough_for_a_row_ends_it(
    base: BaseModel, build: Callable[..., TextTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(model: nn.Module, batch: Batch) -> BatchLoss:
        raise torch.OutOfMemoryError("CUDA out of memory")

    task = build()
    monkeypatch.setattr(task, "loss", loss)
    with pytest.raises(torch.OutOfMemoryError):
        task.validate(base.model, whole=True)


def test_the_bare_base_is_measured_by_the_loss_that_it_supports(
    base: BaseModel, build: Callable[..., TextTask]
) -> None:
    """A model that scales its logits after the head would be measured wrongly by the fused loss."""
    scaled = ScaledLlama(base.model.config).requires_grad_(False).eval()
    scaled.load_state_dict(base.model.state_dict())
    wanted = build()
    wanted.prepare(scaled)
    task = build_on(scaled, base, build)
    assert task.measure_retention(scaled) == wanted.measure_retention(scaled)
    assert task.measure_retention(scaled) != pytest.approx(build().measure_retention(base.model), rel=1e-3)


class ScaledLlama(LlamaForCausalLM):
    def forward(self, *arguments: Any, **options: Any) -> Any:
        outputs = super().forward(*arguments, **options)
        outputs.logits = outputs.logits * 3
        return outputs


def build_on(model: LlamaForCausalLM, base: BaseModel, build: Callable[..., TextTask]) -> TextTask:
    template = build()
    made_of = (template._config, template._hparams, template._source, template._judging)
    return TextTask(*made_of, replace(base, model=model), template._cache)
