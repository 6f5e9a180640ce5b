import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_pipeline import LAYERS, MAX_TOKENS, RESOLUTION, drop_component, save_tiny_pipeline

from peftsweep.config.schema import ModelConfig
from peftsweep.errors import ModelError
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.image.loader import fingerprint_pipeline
from peftsweep.modalities.image.pipeline import predict_velocity
from peftsweep.modalities.loading import load_base

CPU = torch.device("cpu")
PROMPTS = ["a photo of sks toy", "the red circle left", ""]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_pipeline(tmp_path / "pipeline")


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("models") / "pipeline")


def spec(folder: Path, dtype: str = "float32") -> ModelConfig:
    return ModelConfig("flux2", "image", str(folder), dtype=dtype)


@pytest.fixture(params=["float32", "bfloat16"])
def base(shared_folder: Path, request: pytest.FixtureRequest) -> BaseModel:
    return load_base(spec(shared_folder, request.param), CPU)


def embeds(base: BaseModel) -> torch.Tensor:
    assert base.parts
    return base.parts.encode_prompts(PROMPTS, max_tokens=MAX_TOKENS, layers=LAYERS)


def pictures(base: BaseModel, model: torch.nn.Module, seeds: list[int], batch_size: int = 2) -> np.ndarray:
    assert base.parts
    encoded = embeds(base)
    return base.parts.generate(
        model,
        encoded[:2],
        encoded[2:],
        seeds,
        resolution=RESOLUTION,
        steps=2,
        guidance=3.5,
        batch_size=batch_size,
    )


def test_the_transformer_is_what_is_trained_and_starts_frozen(base: BaseModel) -> None:
    assert type(base.model).__name__ == "Flux2Transformer2DModel"
    assert not base.model.training
    assert not any(weight.requires_grad for weight in base.model.parameters())


def test_prompts_become_the_stacked_hidden_states_of_the_layers_asked_for(base: BaseModel) -> None:
    found = embeds(base)
    assert found.shape == (3, MAX_TOKENS, base.model.config.joint_attention_dim)
    assert found.dtype == next(base.model.parameters()).dtype
    assert not torch.equal(found[0], found[1])


def test_pictures_become_latents_of_one_token_per_square_of_pixels(base: BaseModel) -> None:
    assert base.parts
    side = RESOLUTION // base.parts.pixels_per_token
    found = base.parts.encode_images(torch.rand(2, 3, RESOLUTION, RESOLUTION) * 2 - 1)
    assert found.shape == (2, base.model.config.in_channels, side, side)


def test_noise_levels_fall_from_one_and_are_not_changed_by_making_pictures(base: BaseModel) -> None:
    assert base.parts
    before = base.parts.sigmas.clone()
    assert before[0] == 1
    assert (before.diff() < 0).all()
    pictures(base, base.model, [0, 1])
    assert torch.equal(base.parts.sigmas, before)


def test_a_picture_follows_its_seed_and_not_its_batch(base: BaseModel) -> None:
    together, alone, other = (
        pictures(base, base.model, seeds, size) for seeds, size in (([7, 8], 2), ([7, 8], 1), ([9, 9], 2))
    )
    assert together.shape == (2, RESOLUTION, RESOLUTION, 3)
    assert together.dtype == np.uint8
    assert np.abs(together.astype(int) - alone).max() <= 2  # batches are multiplied in another order
    assert np.abs(together.astype(int) - other).max() > 2


def test_an_adapter_changes_the_pictures_and_gets_gradients(base: BaseModel) -> None:
    assert base.parts
    plain = pictures(base, base.model, [7, 8])
    model = get_peft_model(base.model, LoraConfig(r=4, target_modules=["to_q", "linear_in"], init_lora_weights=False))
    latents = torch.randn(2, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    found = predict_velocity(model, latents, torch.tensor([0.3, 0.7]), embeds(base)[:2], base.parts.dtype)
    assert found.shape == latents.shape
    found.float().square().mean().backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    assert np.abs(pictures(base, model, [7, 8]).astype(int) - plain).max() > 0


def test_the_velocity_is_that_of_the_pipeline_itself(shared_folder: Path) -> None:
    """One step of Euler from pure noise: latents - velocity, whatever the pipeline's own packing does."""
    from diffusers import Flux2KleinPipeline

    base = load_base(spec(shared_folder), CPU)
    assert base.parts
    prompt = embeds(base)[:1]
    noise = torch.randn(1, 16, 2, 2, generator=torch.Generator().manual_seed(3))
    whole = Flux2KleinPipeline.from_pretrained(shared_folder)
    whole.set_progress_bar_config(disable=True)
    options = {"height": RESOLUTION, "width": RESOLUTION, "num_inference_steps": 1, "guidance_scale": 1.0}
    latents = whole(prompt_embeds=prompt, latents=noise, output_type="latent", **options).images
    with torch.no_grad():
        velocity = predict_velocity(base.model, noise, torch.ones(1), prompt, base.parts.dtype)
    batch_norm = whole.vae.bn
    scale = torch.sqrt(batch_norm.running_var + whole.vae.config.batch_norm_eps).view(1, -1, 1, 1)
    expected = whole._unpatchify_latents((noise - velocity) * scale + batch_norm.running_mean.view(1, -1, 1, 1))
    torch.testing.assert_close(latents, expected)


def test_a_kept_base_gives_each_job_the_same_bits(shared_folder: Path) -> None:
    first = load_base(spec(shared_folder), CPU, keep=True)
    before = {name: weight.clone() for name, weight in first.model.state_dict().items()}
    with torch.no_grad():
        for weight in first.model.parameters():
            weight.add_(1)
    second = load_base(spec(shared_folder), CPU, keep=True)
    assert all(torch.equal(weight, before[name]) for name, weight in second.model.state_dict().items())


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "scheduler"])
def test_a_folder_without_a_part_is_refused_and_the_part_named(folder: Path, component: str) -> None:
    drop_component(folder, component)
    with pytest.raises(ModelError, match=f"without {component}"):
        load_base(spec(folder), CPU)


def test_a_pipeline_of_another_class_is_refused(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": "FluxPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="Flux2KleinPipeline"):
        load_base(spec(folder), CPU)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index\.json"):
        load_base(spec(tmp_path), CPU)


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_the_revision_follows_every_weight(folder: Path, component: str) -> None:
    from safetensors.torch import load_file, save_file

    before = fingerprint_pipeline(folder)
    file = next((folder / component).glob("*.safetensors"))
    weights = load_file(file)
    next(iter(weights.values())).add_(1)
    save_file(weights, file, metadata={"format": "pt"})
    assert fingerprint_pipeline(folder) != before
