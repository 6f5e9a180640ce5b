"""Every method that names encoders attaches to one, trains itself and the head, and comes back from disk."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from method_marks import quick_and_slow
from peft import PeftModel
from tiny_encoder import save_tiny_encoder
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import MethodConfig
from peftsweep.methods.attach import attach_method, build_optimizer, calibration_batches_wanted
from peftsweep.methods.catalog import method_files, read_method_file
from peftsweep.modalities.encoder.loader import EncoderParts, give_head, load_encoder
from peftsweep.modalities.encoder.settings import EncoderConfig

CLASSES = ("a", "b", "c")
METHODS = {name: read_method_file(path) for name, path in method_files().items()}
NEEDS_CUDA = {"loftq"}
VIRTUAL_TOKENS = ("p-tuning", "prefix-tuning", "prompt-tuning", "prompt-tuning-sampled")
CAPACITIES = {"lily": 16, "waveft": 100, "eva": 8} | dict.fromkeys(VIRTUAL_TOKENS, 6)
BATCH = {
    "input_ids": torch.randint(5, 19, (4, 7), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.ones(4, 7, dtype=torch.int64),
}
LABELS = torch.tensor([0, 1, 2, 1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def base(folder: Path) -> Any:
    return load_encoder(
        EncoderConfig("tiny", "encoder", str(folder), dtype="float32"), str(folder), torch.device("cpu")
    )


def small(name: str) -> MethodConfig:
    """With a size for layers of 64, where its own is for wider ones."""
    overrides = [f"method={name}", *([f"method.capacity={CAPACITIES[name]}"] if name in CAPACITIES else [])]
    return build_config(compose_config(["task=classify", *overrides])).method


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return nn.functional.cross_entropy(model(**inputs).logits, batch["labels"])


@pytest.mark.parametrize(
    "name", quick_and_slow(name for name, method in METHODS.items() if "encoder" in method.modalities)
)
def test_a_method_trains_itself_and_the_head_and_comes_back_from_disk(
    name: str, base: Any, folder: Path, tmp_path: Path
) -> None:
    if name in NEEDS_CUDA:
        pytest.skip("quantises on CUDA")
    method, model, parts = small(name), copy.deepcopy(base.model), base.parts
    assert isinstance(parts, EncoderParts)
    torch.manual_seed(0)
    give_head(model, parts.heads, CLASSES)
    batch = BATCH | {"labels": LABELS}
    wanted = min(1, calibration_batches_wanted(method))
    attached = attach_method(
        model,
        method,
        total_steps=2,
        task_type="SEQ_CLS",
        heads=parts.heads,
        tokenizer=base.tokenizer,
        calibration_batches=[batch] * wanted,
        loss=loss_of,
    )
    optimizer = build_optimizer(attached, "AdamW", lr=1e-3, weight_decay=0.0, head_lr=1e-2)
    before = {key: weight.detach().clone() for key, weight in attached.trainable_parameters().items()}
    attached.model.train()
    for step in (1, 2):
        loss = loss_of(attached.model, batch)
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
        attached.hook.after_step(attached.model, step)
        optimizer.zero_grad()
    after = attached.trainable_parameters()
    assert any(not torch.equal(before[key], after[key]) for key in attached.head_parameters())
    if name != "head":
        own = after.keys() - attached.head_parameters().keys()
        assert own
        assert any(not torch.equal(before[key], after[key]) for key in own & before.keys())
    attached.save(tmp_path)
    where = folder if method.peft_type else tmp_path
    plain: Any = AutoModelForSequenceClassification.from_pretrained(where, num_labels=len(CLASSES))
    loaded = PeftModel.from_pretrained(plain, tmp_path) if method.peft_type else plain
    with torch.no_grad():
        expected, found = attached.model.eval()(**BATCH).logits, loaded.eval()(**BATCH).logits
    assert torch.allclose(found, expected, atol=1e-4)
