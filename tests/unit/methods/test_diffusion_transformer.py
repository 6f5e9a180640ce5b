"""What every method of conf/method does on a diffusion transformer: it works there, or its YAML says that it can't."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from method_marks import quick_and_slow
from peft import PeftModel
from tiny_transformer import image_batch, image_loss, tiny_transformer, velocity_of
from torch import Tensor, nn

from peftsweep.config.schema import MethodConfig
from peftsweep.errors import MethodError
from peftsweep.methods.attach import (
    AttachedMethod,
    attach_method,
    build_optimizer,
    calibration_batches_wanted,
    enable_gradient_checkpointing,
)
from peftsweep.methods.capabilities import find_capabilities
from peftsweep.methods.catalog import method_files, read_method_file

METHODS = {name: read_method_file(path) for name, path in method_files().items()}
NEEDS_CUDA = {"loftq": "LoftQ quantises the base weights with bitsandbytes on a GPU"}
ON_IMAGES = sorted(name for name, method in METHODS.items() if "image" in method.modalities)
TOKENS_ONLY = sorted(name for name, method in METHODS.items() if "image" not in method.modalities and name != "head")

# Merges where layers have a bias to merge into, which those of FLUX.2 have not.
NEEDS_BIAS = {"beft"}

# One of each way in which a method is wired in: beside a layer, around it, in its place, around whole blocks.
KINDS = ["lora", "dora", "oft", "ia3", "vera", "ln-tuning", "shadow", "velora", "full"]


@dataclass(frozen=True)
class Trained:
    method: MethodConfig
    attached: AttachedMethod
    velocity_before: Tensor


@pytest.fixture(scope="module")
def base() -> nn.Module:
    return tiny_transformer()


@pytest.fixture(scope="module", params=quick_and_slow(ON_IMAGES))
def trained(request: pytest.FixtureRequest, base: nn.Module) -> Iterator[Trained]:
    if request.param in NEEDS_CUDA and not torch.cuda.is_available():
        pytest.skip(NEEDS_CUDA[request.param])
    method = METHODS[request.param]
    attached = attach(method, copy.deepcopy(base))
    before = answer(attached.model)
    train(attached, method)
    return Trained(method, attached, before)


def attach(method: MethodConfig, model: nn.Module) -> AttachedMethod:
    torch.manual_seed(0)
    batches = [image_batch(0)] * min(1, calibration_batches_wanted(method))  # EVA never ends on two random ones
    return attach_method(model, method, total_steps=2, task_type=None, calibration_batches=batches, loss=image_loss)


def train(attached: AttachedMethod, method: MethodConfig) -> list[float]:
    """Two steps; the gradient norm of each."""
    torch.manual_seed(1)
    optimizer = build_optimizer(attached, "AdamW", lr=method.lr, weight_decay=0.1)
    attached.model.train()
    norms = []
    for step in (1, 2):
        image_loss(attached.model, image_batch(step)).backward()
        gradients = [weight.grad for weight in attached.trainable_parameters().values() if weight.grad is not None]
        norms.append(torch.stack([gradient.float().norm() for gradient in gradients]).norm().item())
        optimizer.step()
        attached.hook.after_step(attached.model, step)
        optimizer.zero_grad()
    return norms


@torch.no_grad()
def answer(model: nn.Module) -> Tensor:
    return velocity_of(model.eval(), image_batch(100))


def test_training_changes_what_the_transformer_predicts(trained: Trained) -> None:
    after = answer(trained.attached.model)
    assert after.isfinite().all()
    assert not torch.equal(after, trained.velocity_before)


def test_a_saved_adapter_predicts_the_same_on_a_fresh_base(trained: Trained, base: nn.Module, tmp_path: Path) -> None:
    trained.attached.save(tmp_path)
    if isinstance(trained.attached.model, PeftModel):
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    else:
        loaded = Flux2Transformer2DModel.from_pretrained(tmp_path)
    # rtol: CorDA and LoRA-GA are saved as a difference of two adapters, which rounds in float32.
    torch.testing.assert_close(answer(loaded), answer(trained.attached.model), atol=1e-5, rtol=1e-5)


# The last test with `trained`, whose model it changes: MonteCLoRA's can't be copied once it has drawn noise.
def test_a_method_that_claims_to_merge_does(trained: Trained) -> None:
    name, model = trained.method.name, trained.attached.model
    if name in NEEDS_BIAS or name == "full" or not find_capabilities(trained.method).mergeable:
        pytest.skip("nothing to merge, or into nothing")
    before = answer(model)
    model.merge_adapter()
    torch.testing.assert_close(answer(model), before, atol=1e-5, rtol=1e-5)


# Why a method can't be put on a diffusion transformer: pieces of peft's or its hook's refusal.
REFUSALS = {
    "adaption-prompt": "no attribute 'model_type'",
    "cartridge": "doesn't fit",
    "cpt": "'attention_mask'",
    "p-tuning": "doesn't fit",
    "prefix-tuning": "doesn't fit",
    "prefix-tuning-text": "doesn't fit",
    "prompt-tuning": "doesn't fit",
    "prompt-tuning-sampled": "doesn't fit",
    "trainable-tokens": "'input_ids'",
}


@pytest.mark.parametrize("name", TOKENS_ONLY)
def test_a_method_for_tokens_alone_can_not_be_put_on_a_diffusion_transformer(name: str, base: nn.Module) -> None:
    with pytest.raises(MethodError) as caught:
        attach(METHODS[name], copy.deepcopy(base))
    assert REFUSALS[name] in str(caught.value)


def test_every_method_but_a_new_head_serves_text_and_those_for_tokens_alone_are_known() -> None:
    assert {name for name, method in METHODS.items() if "text" in method.modalities} == set(METHODS) - {"head"}
    assert set(TOKENS_ONLY) == set(REFUSALS)


@pytest.mark.parametrize("name", TOKENS_ONLY)
def test_a_method_for_tokens_alone_says_why_in_its_file(name: str) -> None:
    lines = method_files()[name].read_text().splitlines()
    assert [line for line in lines if line.startswith("modalities: [text") and "] # " in line]


@pytest.mark.parametrize("name", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(name: str, base: nn.Module) -> None:
    norms = []
    for checkpointing in (False, True):
        model = copy.deepcopy(base)
        if checkpointing:
            enable_gradient_checkpointing(model)
        assert model.gradient_checkpointing is checkpointing
        norms.append(train(attach(METHODS[name], model), METHODS[name]))
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert min(norms[0]) > 0


# SHADOW: peft builds its network in the base's dtype, and only what it adds to the blocks in float32.
IN_DTYPE_OF_BASE = {"shadow", "full"}


@pytest.mark.parametrize("name", [*KINDS, "eva"])
def test_a_bfloat16_base_trains_with_its_adapter_in_float32(name: str, base: nn.Module) -> None:
    attached = attach(METHODS[name], copy.deepcopy(base).to(torch.bfloat16))
    before = answer(attached.model)
    assert min(train(attached, METHODS[name])) > 0
    assert not torch.equal(answer(attached.model), before)
    dtypes = {weight.dtype for weight in attached.trainable_parameters().values()}
    assert torch.bfloat16 in dtypes if name in IN_DTYPE_OF_BASE else dtypes == {torch.float32}


@pytest.mark.parametrize("name", ["eva", "corda", "lora-ga"])
def test_calibration_follows_the_pictures(name: str, base: nn.Module) -> None:
    starts = []
    for seed in (0, 1):
        torch.manual_seed(0)
        attached = attach_method(
            copy.deepcopy(base),
            METHODS[name],
            total_steps=2,
            task_type=None,
            calibration_batches=[image_batch(seed)],
            loss=image_loss,
        )
        starts.append(
            next(weight for key, weight in attached.trainable_parameters().items() if "0.attn.to_q.lora_A" in key)
        )
    assert starts[0].shape != starts[1].shape or not torch.allclose(*starts)


def test_eva_refuses_batches_with_fewer_vectors_than_it_looks_for(base: nn.Module) -> None:
    small = {key: tensor[:1] for key, tensor in image_batch(0).items()}
    with pytest.raises(MethodError, match="at least rank x rho = 64 vectors through each adapted layer, got 8"):
        attach_method(
            copy.deepcopy(base),
            METHODS["eva"],
            total_steps=2,
            task_type=None,
            calibration_batches=[small],
            loss=image_loss,
        )


@pytest.mark.parametrize("name", ["kasa", "monteclora", "adalora"])
def test_a_methods_own_loss_is_asked_for_where_outputs_hold_none(name: str, base: nn.Module) -> None:
    attached = attach(METHODS[name], copy.deepcopy(base))
    image_loss(attached.model.train(), image_batch(0))
    term = attached.hook.own_loss(attached.model)
    assert term is not None
    assert term.requires_grad
    assert term > 1e-3


@pytest.mark.parametrize("name", ["lora", "oft", "full"])
def test_most_methods_have_no_loss_of_their_own(name: str, base: nn.Module) -> None:
    attached = attach(METHODS[name], copy.deepcopy(base))
    assert attached.hook.own_loss(attached.model) is None
