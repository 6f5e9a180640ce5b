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
from PIL import Image
from tiny_vlm import save_tiny_vlm, write_questions
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peftsweep.config.registry import find_modality
from peftsweep.config.schema import HparamsConfig, ModelConfig, TaskConfig
from peftsweep.modalities.base import BaseModel, Batch, Task, modality_of
from peftsweep.modalities.encoder.pocket.scenes import make_claims, make_tagged
from peftsweep.modalities.encoder.settings import ClassifyConfig, EncoderConfig, LabelTaskConfig, TagConfig
from peftsweep.modalities.image.pocket.world import concept_photos
from peftsweep.modalities.image.settings import ImageGenConfig
from peftsweep.modalities.loading import load_base
from peftsweep.modalities.text.pocket import LLAMA_FOLDER
from peftsweep.modalities.text.rows import Row
from peftsweep.modalities.text.settings import MetamathConfig, SftConfig
from peftsweep.modalities.text_world import make_problems
from peftsweep.modalities.vision_language.settings import VlmConfig, VqaConfig

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
TEXT_ITEM = {"prompt", "target", "generated", "parsed", "correct"}
# Pictures of four tokens, drawn in one step: the contract is about counting and order.
SMALL_PICTURES: dict[str, Any] = {
    "resolution": 32,
    "max_prompt_tokens": 8,
    "text_encoder_layers": [1, 2, 3],
    "inference_steps": 1,
    "guidance": 1.0,
    "valid_photos": 2,
    "test_photos": 3,
    "test_seeds": 2,
    "drift_prompts": ["a red ball", "a blue star"],
    "sample_prompts": [],
}
IMAGE_ITEM = {
    "prompt",
    "seed",
    "image",
    "photo",
    "similarity",
    "nearest_training_similarity",
    "memorised",
}


@dataclass(frozen=True)
class Setup:
    """A task's configuration, how many rows each split has, and what the test split asks, in order."""

    config: TaskConfig
    base: BaseModel
    rows: dict[str, int]
    asked: list[dict[str, Any]]
    item_keys: set[str]
    same_test: dict[str, Any]  # settings that change nothing about the test
    other_tests: list[dict[str, Any]]  # settings that do, each on its own
    retention: str  # the metric of what was lost
    without_retention: dict[str, Any]


def text_setup(config: TaskConfig, base: BaseModel, rows: list[Row]) -> Setup:
    return Setup(
        config,
        base,
        {"train": TRAIN_ROWS, "valid": VALID_ROWS, "test": TEST_ROWS},
        [{"prompt": row.prompt, "target": row.response} for row in rows],
        TEXT_ITEM,
        {"train_rows": 8, "eval_batch_size": 2, "bucket_batches": 1},
        [{"test_rows": 4}, {"max_new_tokens": 7}, {"max_seq_length": 255}],
        "forgetting_nats",
        {"general_rows": 0},
    )


def image_setup(config: ImageGenConfig, n_train: int, prompts: list[str]) -> Setup:
    spec = ModelConfig("pocket-flux2", "image", "embedded", dtype="float32")
    other_tests = [{"test_seeds": 1}, {"inference_steps": 2}, {"guidance": 2.0}, {"resolution": 48}, {"test_photos": 2}]
    return Setup(
        config,
        load_base(spec, torch.device("cpu"), keep=True),
        {"train": n_train, "valid": 2, "test": 3},
        [{"prompt": prompt} for prompt in prompts for _ in range(2)],
        IMAGE_ITEM,
        {"augment": True, "valid_seeds": 2, "drift_seeds": 2, "sample_prompts": ["a toy"], "eval_batch_size": 2},
        other_tests,
        "drift",
        {"drift_prompts": []},
    )


def label_setup(config: LabelTaskConfig, item_keys: set[str], asked: list[dict[str, Any]]) -> Setup:
    spec = EncoderConfig("pocket-bert", "encoder", "embedded", dtype="float32", label_of=config.label_of)
    return Setup(
        config,
        load_base(spec, torch.device("cpu"), keep=True),
        {"train": TRAIN_ROWS, "valid": VALID_ROWS, "test": TEST_ROWS},
        asked,
        item_keys,
        {"train_rows": 8, "eval_batch_size": 2, "bucket_batches": 1},
        [{"test_rows": 4}, {"max_seq_length": 255}],
        "forgetting_mlm_nats",
        {"general_rows": 0},
    )


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
    return text_setup(config, build_base(), rows)


def metamath_files(folder: Path) -> Setup:
    files, rows = question_files(folder)
    config = MetamathConfig(name="metamath", template="Question: {prompt}\nAnswer:", loss_on="all", **files, **LIMITS)
    return text_setup(config, build_base(), rows)


def sft_embedded(folder: Path) -> Setup:
    rows = [Row(problem.query, problem.response) for problem in make_problems("test", TEST_ROWS)]
    return text_setup(SftConfig(name="sft", source="embedded", template="{prompt}\n", **LIMITS), build_base(), rows)


def sft_files(folder: Path) -> Setup:
    files, rows = question_files(folder)
    return text_setup(SftConfig(name="sft", template="{prompt}\n", **files, **LIMITS), build_base(), rows)


def sft_chats(folder: Path) -> Setup:
    files, rows = question_files(folder, chat=True)
    return text_setup(SftConfig(name="sft", **files, **LIMITS), build_base(chat=True), rows)


def image_embedded(folder: Path) -> Setup:
    return image_setup(
        ImageGenConfig(name="image-gen", **SMALL_PICTURES), 14, [prompt for _, prompt in concept_photos("test")[:3]]
    )


def image_files(folder: Path) -> Setup:
    photos = concept_photos("train")[:9]
    for number, (pixels, _) in enumerate(photos):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "prompt": prompt} for number, (_, prompt) in enumerate(photos)]
    write_jsonl(folder / "metadata.jsonl", rows)
    prompts = [photos[number][1] for number in (3, 0, 5)]  # the last three of numpy's RandomState(0).permutation(9)
    return image_setup(ImageGenConfig(name="image-gen", images=str(folder), **SMALL_PICTURES), 4, prompts)


def vqa_files(folder: Path) -> Setup:
    write_questions(folder, TRAIN_ROWS + VALID_ROWS + TEST_ROWS, numbered=True)
    records = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    files = {
        "train_files": write_jsonl(folder / "train.jsonl", records[TEST_ROWS:]),
        "test_files": write_jsonl(folder / "test.jsonl", records[:TEST_ROWS]),
    }
    spec = VlmConfig("tiny", "vision_language", str(save_tiny_vlm(folder / "tiny")), dtype="float32")
    rows = [Row(record["question"], record["answer"]) for record in records[:TEST_ROWS]]
    config = VqaConfig(name="vqa", general_pictures=0, **files, **LIMITS)
    setup = text_setup(config, load_base(spec, torch.device("cpu")), rows)
    return replace(setup, item_keys=TEXT_ITEM | {"picture"})


LABEL_LIMITS = {key: LIMITS[key] for key in ("train_rows", "valid_rows", "test_rows", "general_rows")}
LABEL_ITEM = {"target", "predicted", "probabilities", "correct"}


def classify_embedded(folder: Path) -> Setup:
    asked = [{"text": text, "pair": pair, "target": label} for text, pair, label in make_claims("test", TEST_ROWS)]
    return label_setup(ClassifyConfig(name="classify", **LABEL_LIMITS), LABEL_ITEM | {"text", "pair"}, asked)


def classify_files(folder: Path) -> Setup:
    claims = {"train": make_claims("train", TRAIN_ROWS + VALID_ROWS), "test": make_claims("test", TEST_ROWS)}
    rows = {split: [{"sentence": pair, "label": label} for _, pair, label in claims[split]] for split in claims}
    files = {f"{split}_files": write_jsonl(folder / f"{split}.jsonl", rows[split]) for split in rows}
    asked = [{"text": row["sentence"], "target": row["label"]} for row in rows["test"]]
    return label_setup(ClassifyConfig(name="classify", **files, **LABEL_LIMITS), LABEL_ITEM | {"text"}, asked)


def tag_embedded(folder: Path) -> Setup:
    asked = [{"text": " ".join(words), "target": " ".join(tags)} for words, tags in make_tagged("test", TEST_ROWS)]
    return label_setup(TagConfig(name="tag", **LABEL_LIMITS), LABEL_ITEM | {"text"}, asked)


SETUPS: dict[str, Callable[[Path], Setup]] = {
    "metamath, embedded": metamath_embedded,
    "metamath, files": metamath_files,
    "sft, embedded": sft_embedded,
    "sft, files": sft_files,
    "sft, chats": sft_chats,
    "classify, embedded": classify_embedded,
    "classify, files": classify_files,
    "tag, embedded": tag_embedded,
    "image-gen, embedded": image_embedded,
    "image-gen, files": image_files,
    "vqa, files": vqa_files,
}
TEXT_SETUPS = [name for name in SETUPS if not name.startswith("image")]


@pytest.fixture(params=SETUPS)
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Setup:
    return SETUPS[request.param](tmp_path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def build(setup: Setup, cache: Path) -> Callable[..., Task]:
    """Builds the task; keywords replace settings of the task or of the hyper-parameters."""

    def with_changes(**changes: Any) -> Task:
        hparams = HparamsConfig(max_seq_length=256, bucket_batches=BUCKET_BATCHES, eval_batch_size=4)
        own = {key: value for key, value in changes.items() if hasattr(setup.config, key)}
        others = {key: value for key, value in changes.items() if key not in own}
        config = replace(setup.config, **own)
        return modality_of(config).build_task(config, replace(hparams, **others), setup.base, cache)

    return with_changes


@pytest.fixture
def task(build: Callable[..., Task]) -> Task:
    return build()


def take(task: Task, count: int, *, seed: int = 0, skip: int = 0, batch_size: int = BATCH_SIZE) -> list[Batch]:
    return list(islice(task.train_batches(batch_size, seed, skip), count))


def rows_of(batches: list[Batch]) -> list[tuple[float, ...]]:
    """The rows in the order of training: token ids without padding, or latents."""
    return [row for batch in batches for row in (text_rows if "input_ids" in batch else image_rows)(batch)]


def text_rows(batch: Batch) -> list[tuple[float, ...]]:
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in pairs]


def image_rows(batch: Batch) -> list[tuple[float, ...]]:
    return [tuple(latents.flatten().tolist()) for latents in batch["latents"]]


def rows_of_split(task: Any, split: str) -> set[tuple[float, ...]]:
    found = task._split(split)
    if hasattr(found, "latents"):
        return set(image_rows({"latents": found.latents}))
    read = found[1]
    if isinstance(read, list):
        return {tuple(row.inputs["input_ids"]) for row in read}
    return {tuple(read.row(index)) for index in range(len(read))}


def refuse_test_data(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, reading the test split fails."""

    source = task._source
    opener = "open" if hasattr(source, "open") else "read"  # of photos, of rows
    open_split = getattr(source, opener)

    def refuse(split: str) -> Any:
        if split == "test":
            raise AssertionError("test data was read")
        return open_split(split)

    monkeypatch.setattr(task, "_source", replace(source, **{opener: refuse}))


def test_every_row_comes_once_an_epoch_without_end(task: Task, setup: Setup) -> None:
    count = setup.rows["train"]
    rows = rows_of(take(task, -(-3 * count // BATCH_SIZE)))
    epochs = [Counter(rows[start : start + count]) for start in range(0, 3 * count, count)]
    assert len(epochs[0]) == count
    assert epochs[0] == epochs[1] == epochs[2]


def test_epochs_differ_in_their_order(task: Task, setup: Setup) -> None:
    count = setup.rows["train"]
    rows = rows_of(take(task, -(-2 * count // BATCH_SIZE)))
    assert rows[:count] != rows[count : 2 * count]


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


@pytest.mark.parametrize("setup", TEXT_SETUPS, indirect=True)
def test_padding_counts_neither_as_token_nor_as_target(task: Task) -> None:
    alone = take(task, TRAIN_ROWS, batch_size=1)
    together = take(task, TRAIN_ROWS // BATCH_SIZE)
    assert any((batch["attention_mask"] == 0).any() for batch in together)
    assert sum(map(task.tokens, alone)) == sum(map(task.tokens, together))
    assert sum(map(task.targets, alone)) == sum(map(task.targets, together)) > 0


def test_the_loss_of_a_batch_is_the_sum_over_its_rows(task: Task, setup: Setup) -> None:
    batch = take(task, 1)[0]
    rows = [task.rows(batch, [index]) for index in range(BATCH_SIZE)]
    with torch.no_grad():
        whole = task.loss(setup.base.model, batch).sum
        parts = [task.loss(setup.base.model, row).sum for row in rows]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts), rel=1e-5)


@pytest.mark.parametrize("setup", TEXT_SETUPS, indirect=True)
def test_the_loss_leaves_out_what_is_no_target(task: Task, setup: Setup) -> None:
    batch = take(task, 1)[0]
    emptied = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    assert task.targets(emptied) == 0
    assert task.loss(setup.base.model, emptied).sum.item() == 0.0


def test_tuning_reads_no_test_data(task: Task, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_test_data(task, monkeypatch)
    task.prepare(setup.base.model)
    take(task, 2)
    task.validate(setup.base.model, whole=True)
    task.evaluate(setup.base.model, "valid")
    task.measure_retention(setup.base.model)
    assert {info.split for info in task.datasets()} == {"train", "valid"}
    with pytest.raises(AssertionError, match="test data was read"):
        task.evaluate(setup.base.model, "test")


def test_training_and_held_out_rows_are_disjoint(task: Task, setup: Setup) -> None:
    trained = set(rows_of(take(task, -(-setup.rows["train"] // BATCH_SIZE))))
    assert not trained & rows_of_split(task, "valid")
    assert not trained & rows_of_split(task, "test")


def test_test_items_are_answered_in_their_own_order(task: Task, setup: Setup) -> None:
    items = task.evaluate(setup.base.model, "test").items
    assert [{key: item[key] for key in asked} for item, asked in zip(items, setup.asked, strict=True)] == setup.asked
    assert all(item.keys() == setup.item_keys for item in items)


def test_scores_come_with_an_interval_around_them(task: Task, setup: Setup) -> None:
    evaluation = task.evaluate(setup.base.model, "test")
    low, high = evaluation.intervals[task.score]
    assert low <= evaluation.metrics[task.score] <= high
    assert evaluation.metrics["loss"] > 0


def test_the_fingerprint_is_that_of_the_items_and_settings(build: Callable[..., Task], setup: Setup) -> None:
    assert build().test_fingerprint() == build(**setup.same_test).test_fingerprint()
    fingerprints = {build(**change).test_fingerprint() for change in [{}, *setup.other_tests]}
    assert len(fingerprints) == 1 + len(setup.other_tests)


def test_an_unchanged_model_has_lost_exactly_nothing(task: Task, setup: Setup) -> None:
    before = task.measure_retention(setup.base.model)
    task.prepare(setup.base.model)
    after = task.measure_retention(setup.base.model)
    assert task.compare_retention(before, after) == {setup.retention: 0.0}


def test_what_was_lost_is_left_out_where_it_is_switched_off(build: Callable[..., Task], setup: Setup) -> None:
    task = build(**setup.without_retention)
    retention = task.measure_retention(setup.base.model)
    assert task.compare_retention(retention, retention) == {}


def test_the_retention_key_is_that_of_what_is_asked(build: Callable[..., Task], setup: Setup) -> None:
    assert build().retention_key() == build(eval_batch_size=3).retention_key()
    assert build().retention_key() != build(**setup.without_retention).retention_key()


def test_validation_is_the_same_at_any_batch_size(build: Callable[..., Task], setup: Setup) -> None:
    losses = []
    for size in (1, 4, 6):
        torch.manual_seed(0)  # where the task draws a head
        losses.append(build(eval_batch_size=size).validate(setup.base.model, whole=True)["valid/loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_what_trials_can_be_judged_by_is_measured_by_validation(task: Task, setup: Setup) -> None:
    objectives = find_modality(setup.config.modality).objectives(setup.config)
    assert set(objectives) <= task.validate(setup.base.model, whole=True).keys()


def test_judging_leaves_the_models_mode_alone(task: Task, setup: Setup) -> None:
    setup.base.model.train()
    task.validate(setup.base.model, whole=True)
    task.evaluate(setup.base.model, "valid")
    assert setup.base.model.training


def test_datasets_tell_how_many_rows_were_read(task: Task, setup: Setup) -> None:
    take(task, 1)
    task.evaluate(setup.base.model, "test")
    assert {info.split: info.rows for info in task.datasets()} == setup.rows


def test_what_is_looked_at_are_pictures(task: Task, setup: Setup) -> None:
    task.validate(setup.base.model, whole=True)
    evaluation = task.evaluate(setup.base.model, "test")
    looked_at = task.pictures(evaluation, evaluation)
    assert all(picture.dtype == "uint8" and picture.ndim == 3 for picture in looked_at.values())
    assert bool(looked_at) == (setup.config.modality in ("image", "vision_language"))
    assert bool(task.samples()) == bool(evaluation.images) == (setup.config.modality == "image")
