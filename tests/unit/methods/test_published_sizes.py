"""Trainable parameters on FLUX.2-klein-base-4B, built on the meta device, against the reference benchmark's."""

import json
import os
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel

from peftsweep.config.schema import MethodConfig
from peftsweep.exchange.experiments import read_method
from peftsweep.methods.attach import attach_method
from peftsweep.methods.catalog import method_files, read_method_file

REFERENCE = os.environ.get("PEFTSWEEP_REFERENCE", "")
needs_reference = pytest.mark.skipif(not REFERENCE, reason="PEFTSWEEP_REFERENCE names no copy of method_comparison")

# Published for image-gen in July 2026, of the methods whose settings are those of conf/method.
PUBLISHED_TRAINABLE = {
    "lora": 38_338_560,
    "rslora": 76_677_120,
    "oft": 4_761_600,
    "gralora": 38_338_560,
    "hra": 9_830_400,
    "ia3": 307_200,
    "ln-tuning": 6_400,
    "loha": 76_677_120,
    "delora": 38_338_640,
    "randlora": 23_838_720,
    "full": 3_875_544_576,
}

# Can't be built without weights: it decomposes those of all layers together.
NEEDS_WEIGHTS = {"frod--flux2-klein-default"}


def klein_4b() -> Flux2Transformer2DModel:
    with torch.device("meta"):
        return Flux2Transformer2DModel(
            in_channels=128,
            num_layers=5,
            num_single_layers=20,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=7680,
            guidance_embeds=False,
        )


def trainable_parameters(method: MethodConfig) -> int:
    model = klein_4b()
    with torch.device("meta"):
        attached = attach_method(model, method, total_steps=750, task_type=None, adapter_float32=False)
    return attached.count_parameters()[0]


def published() -> list[Path]:
    return sorted(Path(REFERENCE).glob("image-gen/results/*.json")) if REFERENCE else []


def test_the_transformer_has_the_published_size() -> None:
    assert sum(weight.numel() for weight in klein_4b().parameters()) == 3_875_544_576


@pytest.mark.parametrize("name", sorted(PUBLISHED_TRAINABLE))
def test_our_defaults_train_as_many_parameters_as_published(name: str) -> None:
    assert trainable_parameters(read_method_file(method_files()[name])) == PUBLISHED_TRAINABLE[name]


@needs_reference
@pytest.mark.parametrize("result", published(), ids=lambda result: result.stem)
def test_every_experiment_of_the_reference_trains_as_many_parameters_as_published(result: Path) -> None:
    if result.stem in NEEDS_WEIGHTS:
        pytest.skip("decomposes the weights of all layers together")
    folder = result.parent.parent / "experiments" / Path(*result.stem.split("--"))
    expected = json.loads(result.read_text())["train_info"]["num_trainable_params"]
    assert trainable_parameters(read_method(folder)) == expected
