"""The architectures of the presets: what is new in each, what its own head finds, and what LoRA is put on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoder import tiny_tokenizer
from transformers import AutoConfig, AutoModelForMaskedLM

from peftsweep.config.schema import HparamsConfig, MethodConfig
from peftsweep.methods.attach import attach_method
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.encoder.labels import IGNORED
from peftsweep.modalities.encoder.loader import load_encoder
from peftsweep.modalities.encoder.rows import build_source
from peftsweep.modalities.encoder.settings import ClassifyConfig, EncoderConfig, LabelTaskConfig, TagConfig
from peftsweep.modalities.encoder.task import LabelTask

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
# What a masked-LM checkpoint lacks for a label of a text, and for one of each word.
NEW_MODULES: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "bert": ({}, {"classifier", "pooler"}, {"classifier"}),
    "roberta": ({}, {"classifier"}, {"classifier"}),
    "modernbert": ({"global_attn_every_n_layers": 2}, {"classifier"}, {"classifier"}),
    "deberta-v2": (
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        {"classifier", "pooler"},
        {"classifier"},
    ),
    "esm": ({"position_embedding_type": "rotary", "mask_token_id": 4}, {"classifier"}, {"classifier"}),
}
HPARAMS = HparamsConfig(max_seq_length=16, eval_batch_size=4)


@pytest.fixture(params=NEW_MODULES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    own, *_ = NEW_MODULES[request.param]
    config = AutoConfig.for_model(request.param, vocab_size=len(tokenizer), **SIZES, **TOKENS, **own)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / request.param)
    tokenizer.save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def load(folder: Path, label_of: str) -> BaseModel:
    spec = EncoderConfig("tiny", "encoder", str(folder), dtype="float32", label_of=label_of)
    return load_encoder(spec, str(folder), torch.device("cpu"))


def build(folder: Path, base: BaseModel, config: LabelTaskConfig, rows: list[dict[str, Any]]) -> LabelTask:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.train_files = str(path)
    return LabelTask(config, HPARAMS, build_source(config, embedded_model=False), base)


def test_each_learns_labels_of_texts_and_keeps_what_it_knew_of_hidden_words(folder: Path) -> None:
    _, new, _ = NEW_MODULES[folder.name]
    base = load(folder, "text")
    rows = [{"text": f"the film was {word} {n}", "label": word} for n in range(20) for word in ("good", "bad")]
    task = build(folder, base, ClassifyConfig(name="classify"), rows)
    assert set(task.add_heads(base.model)) == new
    batches = task._general_batches()
    own = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        sums = [own(**batch).loss.item() * int((batch["labels"] != IGNORED).sum()) for batch in batches]
    words = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
    assert task.measure_retention(base.model) == pytest.approx(sum(sums) / words, rel=1e-4)
    learns(base, task, "SEQ_CLS")


def test_each_learns_tags_of_words(folder: Path) -> None:
    _, _, new = NEW_MODULES[folder.name]
    base = load(folder, "word")
    rows = [
        {"tokens": ["the", word, str(n)], "tags": ["O", f"B-{word}", "O"]}
        for n in range(20)
        for word in ("good", "bad")
    ]
    task = build(folder, base, TagConfig(name="tag"), rows)
    assert set(task.add_heads(base.model)) == new
    learns(base, task, "TOKEN_CLS")


def learns(base: BaseModel, task: LabelTask, task_type: str) -> None:
    """LoRA where the table puts it: the loss of a batch falls."""
    torch.manual_seed(0)
    method = MethodConfig("lora", "LORA", peft={"r": 4})
    attached = attach_method(base.model, method, total_steps=20, task_type=task_type, heads=task.add_heads(base.model))
    batch = next(task.train_batches(8, seed=0))
    optimizer = torch.optim.AdamW(attached.trainable_parameters().values(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = task.loss(attached.model, batch).sum
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
