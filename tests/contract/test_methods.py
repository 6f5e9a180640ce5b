"""What every method of conf/method owes to a job: it attaches, trains only itself, and comes back from disk."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from method_marks import quick_and_slow
from omegaconf import OmegaConf
from peft import PeftModel, PeftType
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from peftsweep.config.schema import MethodConfig
from peftsweep.methods.attach import AttachedMethod, attach_method, build_optimizer, calibration_batches_wanted
from peftsweep.methods.catalog import NOT_SWEPT, method_files, read_method_file
from peftsweep.modalities.text.pocket import LLAMA_FOLDER

METHODS = {name: path for name, path in method_files().items() if "text" in read_method_file(path).modalities}
NEEDS_CUDA = {"loftq": "LoftQ quantises the base weights with bitsandbytes on a GPU"}
VOCABULARY = AutoConfig.from_pretrained(LLAMA_FOLDER).vocab_size
STEPS = 2


@dataclass(frozen=True)
class Trained:
    """A method after two steps on the embedded model, with what was there before them."""

    attached: AttachedMethod
    losses: list[float]
    before: dict[str, Tensor]  # parameters and buffers right after attaching
    trainable: set[str]
    logits_before: Tensor


@pytest.fixture(scope="module")
def base() -> nn.Module:
    """The embedded model without its upper half: what a method shares among layers, it shares among two."""
    model = AutoModelForCausalLM.from_pretrained(LLAMA_FOLDER, dtype=torch.float32, num_hidden_layers=2)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def untouched(base: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
    """Weights and answers of the base before any method was near it. Asked for by every `trained`, so made first."""
    return {name: weight.detach().clone() for name, weight in tensors_of(base).items()}, logits_of(base)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(LLAMA_FOLDER)


@pytest.fixture(scope="module", params=sorted(METHODS))
def trained(
    request: pytest.FixtureRequest, base: nn.Module, untouched: tuple[dict[str, Tensor], Tensor], tokenizer: Any
) -> Iterator[Trained]:
    if request.param in NEEDS_CUDA and not torch.cuda.is_available():
        pytest.skip(NEEDS_CUDA[request.param])
    method = read_method_file(METHODS[request.param])
    wanted = min(calibration_batches_wanted(method), 1)  # EVA goes round two random batches a hundred times
    torch.manual_seed(0)
    attached = attach_method(
        copy.deepcopy(base),
        method,
        total_steps=STEPS,
        tokenizer=tokenizer,
        calibration_batches=[random_batch(seed) for seed in range(wanted)],
    )
    logits_before = logits_of(attached.model)
    optimizer = build_optimizer(attached, "AdamW", lr=method.lr, weight_decay=0.1)
    before = {name: weight.detach().clone() for name, weight in tensors_of(attached.model).items()}
    losses = [train_one_step(attached, optimizer, step) for step in range(1, STEPS + 1)]
    return Trained(attached, losses, before, set(attached.trainable_parameters()), logits_before)


def with_capacity(name: str, capacity: int) -> MethodConfig:
    content = OmegaConf.load(METHODS[name])
    root = OmegaConf.create({"method": OmegaConf.merge(OmegaConf.structured(MethodConfig), content)})
    root.method.capacity = capacity
    OmegaConf.resolve(root)
    return OmegaConf.to_object(root.method)


def random_batch(seed: int, rows: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, VOCABULARY, (rows, 32), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 24:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def logits_of(model: nn.Module) -> Tensor:
    batch = random_batch(100)
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def train_one_step(attached: AttachedMethod, optimizer: torch.optim.Optimizer, step: int) -> float:
    batch = random_batch(step)
    attached.model.train()
    logits = attached.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logits = logits[:, -batch["input_ids"].shape[1] :]  # virtual tokens stand first
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss.backward()
    optimizer.step()
    attached.hook.after_step(attached.model, step)
    optimizer.zero_grad()
    return loss.item()


def test_the_loss_stays_finite(trained: Trained) -> None:
    assert torch.tensor(trained.losses).isfinite().all()


def test_training_changes_the_methods_weights(trained: Trained) -> None:
    after = tensors_of(trained.attached.model)
    changed = {name for name in trained.trainable if not torch.equal(after[name], trained.before[name])}
    assert changed


def test_training_leaves_the_base_model_bit_identical(trained: Trained) -> None:
    after = tensors_of(trained.attached.model)
    base_names = [name for name in after if name not in trained.trainable and ".default" not in name]
    assert [name for name in base_names if not torch.equal(after[name], trained.before[name])] == []


def test_the_next_job_of_the_process_starts_from_the_same_bits(
    trained: Trained, base: nn.Module, untouched: tuple[dict[str, Tensor], Tensor]
) -> None:
    """A warm process gives each job a copy of one base. A method might reach what copies share: classes, globals."""
    weights, logits = untouched
    copied = copy.deepcopy(base)
    assert [name for name, weight in tensors_of(copied).items() if not torch.equal(weight, weights[name])] == []
    assert tensors_of(copied).keys() == weights.keys()
    assert torch.equal(logits_of(copied), logits)


def test_training_changes_what_the_model_says(trained: Trained) -> None:
    assert not torch.equal(logits_of(trained.attached.model), trained.logits_before)


def test_a_saved_adapter_gives_the_same_logits_on_a_fresh_base(
    trained: Trained, base: nn.Module, tmp_path: Path
) -> None:
    trained.attached.save(tmp_path)
    if isinstance(trained.attached.model, PeftModel):
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    # rtol: CorDA and LoRA-GA are saved as a difference of two adapters, which rounds in float32.
    torch.testing.assert_close(logits_of(loaded), logits_of(trained.attached.model), atol=1e-5, rtol=1e-5)


def test_a_saved_adapter_holds_safetensors_only(trained: Trained, tmp_path: Path) -> None:
    trained.attached.save(tmp_path)
    assert list(tmp_path.rglob("*.safetensors"))
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize("name", quick_and_slow(set(METHODS) - set(NEEDS_CUDA)))
def test_every_capacity_of_the_search_space_attaches(name: str, base: nn.Module, tokenizer: Any) -> None:
    for capacity in read_method_file(METHODS[name]).search_space.capacity or []:
        method = with_capacity(name, capacity)
        batches = [random_batch(0, rows=8)] if calibration_batches_wanted(method) else []
        attached = attach_method(
            copy.deepcopy(base), method, total_steps=10, tokenizer=tokenizer, calibration_batches=batches
        )
        assert attached.trainable_parameters()


def test_each_peft_type_has_a_method_or_a_reason() -> None:
    swept = {read_method_file(path).peft_type for path in METHODS.values()} - {None}
    assert swept.isdisjoint(NOT_SWEPT)
    assert swept | set(NOT_SWEPT) == set(PeftType.__members__)
