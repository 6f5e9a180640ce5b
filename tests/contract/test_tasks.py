"""What any task must do, held for each of them: a new task is one more row of SETUPS."""

import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peftsweep.config import HparamsConfig, MetamathConfig, SftConfig, TextTaskConfig
from peftsweep.models.load import BaseModel
from peftsweep.pocket import LLAMA_FOLDER
from peftsweep.pocket.text_world import make_problems
from peftsweep.tasks.base import Batch, Task
from peftsweep.tasks.build import build_task
from peftsweep.tasks.rows import Row

TRAIN_ROWS, VALID_ROWS, TEST_ROWS = 24, 6, 5
BATCH_SIZE, BUCKET_BATCHES = 4, 2  # a bucket of 8 rows divides the 24 of an epoch
CHAT_TEMPLATE = (
    "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
LIMITS: dict[str, Any] = {
    "train_rows": TRAIN_ROWS,
    "valid_rows": VALID_ROWS,
    "test_rows": TEST_ROWS,
    "max_new_tokens": 6,
    "general_rows": 4,
}


@dataclass(frozen=True)
class Setup:
    """A task's configuration and what its test split asks, in order."""

    config: TextTaskConfig
    base: BaseModel
    test_rows: list[Row]


def stories(split: str, count: int) -> list[Row]:
    return [Row(problem.query, problem.response) for problem in make_problems(split, count, seed=7)]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def question_files(folder: Path, *, chat: bool = False) -> tuple[dict[str, str], list[Row]]:
    """Train and test files, as arguments of a task's configuration, and the rows of the test file."""

    def record(row: Row) -> dict[str, Any]:
        if not chat:
            return {"question": row.prompt, "answer": row.response}
        return {"messages": [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.response}]}

    rows = {"train": stories("train", TRAIN_ROWS + VALID_ROWS), "test": stories("test", TEST_ROWS)}
    files = {f"{split}_files": [record(row) for row in rows[split]] for split in rows}
    return {key: write_jsonl(folder / f"{key}.jsonl", records) for key, records in files.items()}, rows["test"]


def build_base(*, chat: bool = False) -> BaseModel:
    """A model too small to know anything: the contract is about counting and order."""
    tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(LLAMA_FOLDER))
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes))
    return BaseModel(model.requires_grad_(False).eval(), tokenizer, "toy", is_embedded=True)


def metamath_embedded(folder: Path) -> Setup:
    rows = [Row(problem.query, problem.response) for problem in make_problems("test", TEST_ROWS)]
    config = MetamathConfig(name="metamath", template="Question: {prompt}\nAnswer:", loss_on="all", **LIMITS)
    return Setup(config, build_base(), rows)


def metamath_files(folder: Path) -> Setup:
    files, rows = question_files(folder)
    config = MetamathConfig(name="metamath", template="Question: {prompt}\nAnswer:", loss_on="all", **files, **LIMITS)
    return Setup(config, build_base(), rows)


def sft_embedded(folder: Path) -> Setup:
    rows = [Row(problem.query, problem.response) for problem in make_problems("test", TEST_ROWS)]
    return Setup(SftConfig(name="sft", template="{prompt}\n", **LIMITS), build_base(), rows)


def sft_files(folder: Path) -> Setup:
    files, rows = question_files(folder)
    return Setup(SftConfig(name="sft", template="{prompt}\n", **files, **LIMITS), build_base(), rows)


def sft_chats(folder: Path) -> Setup:
    files, rows = question_files(folder, chat=True)
    return Setup(SftConfig(name="sft", **files, **LIMITS), build_base(chat=True), rows)


SETUPS: dict[str, Callable[[Path], Setup]] = {
    "metamath, embedded": metamath_embedded,
    "metamath, files": metamath_files,
    "sft, embedded": sft_embedded,
    "sft, files": sft_files,
    "sft, chats": sft_chats,
}


@pytest.fixture(params=SETUPS)
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Setup:
    return SETUPS[request.param](tmp_path)


@pytest.fixture
def build(setup: Setup, tmp_path: Path) -> Callable[..., Task]:
    """Builds the task; keywords replace settings of the task or of the hyper-parameters."""

    def with_changes(**changes: Any) -> Task:
        hparams = HparamsConfig(max_seq_length=256, bucket_batches=BUCKET_BATCHES, eval_batch_size=4)
        own = {key: value for key, value in changes.items() if hasattr(setup.config, key)}
        others = {key: value for key, value in changes.items() if key not in own}
        return build_task(replace(setup.config, **own), replace(hparams, **others), setup.base, tmp_path / "cache")

    return with_changes


@pytest.fixture
def task(build: Callable[..., Task]) -> Task:
    return build()


def take(task: Task, count: int, *, seed: int = 0, skip: int = 0, batch_size: int = BATCH_SIZE) -> list[Batch]:
    return list(islice(task.train_batches(batch_size, seed, skip), count))


def rows_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    """Token ids of the rows, without padding, in the order of training."""
    return [
        tuple(ids[mask.bool()].tolist())
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_every_row_comes_once_an_epoch_without_end(task: Task) -> None:
    batches = take(task, 3 * TRAIN_ROWS // BATCH_SIZE)
    epochs = [Counter(rows_of(batches)[start : start + TRAIN_ROWS]) for start in range(0, 3 * TRAIN_ROWS, TRAIN_ROWS)]
    assert len(epochs[0]) == TRAIN_ROWS
    assert epochs[0] == epochs[1] == epochs[2]


def test_epochs_differ_in_their_order(task: Task) -> None:
    rows = rows_of(take(task, 2 * TRAIN_ROWS // BATCH_SIZE))
    assert rows[:TRAIN_ROWS] != rows[TRAIN_ROWS:]


def test_the_order_follows_the_seed(task: Task) -> None:
    assert rows_of(take(task, 6, seed=1)) != rows_of(take(task, 6, seed=2))


def test_the_order_follows_nothing_but_the_seed(build: Callable[..., Task]) -> None:
    torch.manual_seed(1)
    before = rows_of(take(build(), 6, seed=3))
    torch.manual_seed(2)
    assert rows_of(take(build(), 6, seed=3)) == before


@pytest.mark.parametrize("skip", [1, 3, 7])
def test_skipped_batches_are_those_that_come_first(task: Task, skip: int) -> None:
    assert rows_of(take(task, 4, skip=skip)) == rows_of(take(task, 4 + skip))[skip * BATCH_SIZE :]


def test_padding_counts_neither_as_token_nor_as_target(task: Task) -> None:
    alone = take(task, TRAIN_ROWS, batch_size=1)
    together = take(task, TRAIN_ROWS // BATCH_SIZE)
    assert any((batch["attention_mask"] == 0).any() for batch in together)
    assert sum(map(task.tokens, alone)) == sum(map(task.tokens, together))
    assert sum(map(task.targets, alone)) == sum(map(task.targets, together)) > 0


def test_the_loss_of_a_batch_is_the_sum_over_its_rows(task: Task, setup: Setup) -> None:
    batch = take(task, 1)[0]
    rows = [{key: tensor[index : index + 1] for key, tensor in batch.items()} for index in range(BATCH_SIZE)]
    with torch.no_grad():
        whole = task.loss(setup.base.model, batch).sum
        parts = [task.loss(setup.base.model, row).sum for row in rows]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts), rel=1e-5)


def test_the_loss_leaves_out_what_is_no_target(task: Task, setup: Setup) -> None:
    batch = take(task, 1)[0]
    emptied = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    assert task.targets(emptied) == 0
    assert task.loss(setup.base.model, emptied).sum.item() == 0.0


def test_tuning_reads_no_test_data(task: Task, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[Row]:
        raise AssertionError("test data was read")

    monkeypatch.setattr(task, "_source", replace(task._source, test=refuse))  # type: ignore[attr-defined]
    take(task, 2)
    task.validate(setup.base.model)
    task.evaluate(setup.base.model, "valid")
    task.measure_retention(setup.base.model)
    assert {info.split for info in task.datasets()} == {"train", "valid"}
    with pytest.raises(AssertionError, match="test data was read"):
        task.evaluate(setup.base.model, "test")


def test_training_and_validation_rows_are_disjoint(task: Task) -> None:
    trained = set(rows_of(take(task, TRAIN_ROWS // BATCH_SIZE)))
    _, tokens = task._split("valid")  # type: ignore[attr-defined]
    assert not trained & {tuple(tokens.row(index)) for index in range(len(tokens))}


def test_test_items_are_answered_in_their_own_order(task: Task, setup: Setup) -> None:
    items = task.evaluate(setup.base.model, "test").items
    assert [(item["prompt"], item["target"]) for item in items] == [(r.prompt, r.response) for r in setup.test_rows]
    assert all(item.keys() == {"prompt", "target", "generated", "parsed", "correct"} for item in items)


def test_scores_come_with_an_interval_around_them(task: Task, setup: Setup) -> None:
    evaluation = task.evaluate(setup.base.model, "test")
    low, high = evaluation.intervals[task.score]
    assert low <= evaluation.metrics[task.score] <= high
    assert evaluation.metrics["loss"] > 0


def test_the_fingerprint_is_that_of_the_items_and_settings(build: Callable[..., Task]) -> None:
    assert build().test_fingerprint() == build(train_rows=8, eval_batch_size=2, bucket_batches=1).test_fingerprint()
    changes: list[dict[str, Any]] = [{"test_rows": 4}, {"max_new_tokens": 7}, {"max_seq_length": 255}]
    fingerprints = {build(**change).test_fingerprint() for change in [{}, *changes]}
    assert len(fingerprints) == 4


def test_an_unchanged_model_has_forgotten_exactly_nothing(task: Task, setup: Setup) -> None:
    before = task.measure_retention(setup.base.model)
    task.prepare(setup.base.model)
    after = task.measure_retention(setup.base.model)
    assert task.compare_retention(before, after) == {"forgetting_nats": 0.0}


def test_forgetting_is_left_out_where_it_is_switched_off(build: Callable[..., Task], setup: Setup) -> None:
    task = build(general_rows=0)
    retention = task.measure_retention(setup.base.model)
    assert task.compare_retention(retention, retention) == {}


def test_validation_is_the_same_at_any_batch_size(build: Callable[..., Task], setup: Setup) -> None:
    losses = [build(eval_batch_size=size).validate(setup.base.model)["valid/loss"] for size in (1, 4, 6)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_the_objective_is_among_the_metrics_of_validation(task: Task, setup: Setup) -> None:
    assert task.objective in task.validate(setup.base.model)


def test_judging_leaves_the_models_mode_alone(task: Task, setup: Setup) -> None:
    setup.base.model.train()
    task.validate(setup.base.model)
    task.evaluate(setup.base.model, "valid")
    assert setup.base.model.training


def test_datasets_tell_how_many_rows_were_read(task: Task, setup: Setup) -> None:
    take(task, 1)
    task.evaluate(setup.base.model, "test")
    assert {info.split: info.rows for info in task.datasets()} == {
        "train": TRAIN_ROWS,
        "valid": VALID_ROWS,
        "test": TEST_ROWS,
    }
