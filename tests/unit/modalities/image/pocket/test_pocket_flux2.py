import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor, Dinov2Model

from peftsweep.modalities.image.pocket import DINO_FOLDER, FLUX2_FOLDER
from peftsweep.modalities.image.pocket.build import END, PROMPT_TOKENS, TEXT_LAYERS, world_captions
from peftsweep.modalities.image.pocket.drawing import GROUNDS
from peftsweep.modalities.image.pocket.pretrain_dino import normalise
from peftsweep.modalities.image.pocket.pretrain_vae import encode_latents, to_pixels
from peftsweep.modalities.image.pocket.scene import Scene, caption, place_words
from peftsweep.modalities.image.pocket.world import CONCEPT, CONCEPT_NAME, concept_photos, draw, scenes, vary_scene

WEIGHTS = sorted((*FLUX2_FOLDER.rglob("*.safetensors"), *DINO_FOLDER.rglob("*.safetensors")))
MILLION = 1_000_000


@cache
def pipeline() -> Any:
    found = Flux2KleinPipeline.from_pretrained(FLUX2_FOLDER, torch_dtype=torch.float32)
    found.set_progress_bar_config(disable=True)
    return found


@cache
def encoder() -> Any:
    return Dinov2Model.from_pretrained(DINO_FOLDER, dtype=torch.float32).eval()


@torch.no_grad()
def embed(pictures: list[np.ndarray]) -> Tensor:
    vectors = encoder()(pixel_values=normalise(torch.from_numpy(np.stack(pictures)))).last_hidden_state[:, 0]
    return functional.normalize(vectors, dim=-1)


def generate(prompts: list[str]) -> list[np.ndarray]:
    made = pipeline()(
        prompt=prompts,
        height=64,
        width=64,
        num_inference_steps=20,
        guidance_scale=3.5,
        max_sequence_length=PROMPT_TOKENS,
        text_encoder_out_layers=TEXT_LAYERS,
        generator=[torch.Generator().manual_seed(i) for i in range(len(prompts))],
        output_type="np",
    ).images
    return list((made * 255).round().astype(np.uint8))


def drawings(scene: Scene, count: int, seed: int = 0) -> list[np.ndarray]:
    return [draw(scene, np.random.default_rng([seed, i])) for i in range(count)]


def full_caption(scene: Scene, rng: np.random.Generator) -> str:
    return max((caption(scene, rng) for _ in range(12)), key=len)


def test_weights_are_bfloat16_and_at_most_15_megabytes_together() -> None:
    assert len(WEIGHTS) == 4
    assert sum(path.stat().st_size for path in WEIGHTS) <= 15 * MILLION
    for path in WEIGHTS:
        dtypes = {tensor.dtype for tensor in load_file(path).values() if tensor.is_floating_point()}
        assert dtypes == {torch.bfloat16}, path


def test_the_pipeline_is_made_of_the_real_classes() -> None:
    parts = {name: type(part).__name__ for name, part in pipeline().components.items() if hasattr(part, "config")}
    assert parts == {
        "transformer": "Flux2Transformer2DModel",
        "vae": "AutoencoderKLFlux2",
        "text_encoder": "Qwen3ForCausalLM",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    }


def test_captions_fit_into_the_prompt() -> None:
    tokenizer = pipeline().tokenizer
    assert max(len(tokenizer(text + END)["input_ids"]) for text in world_captions(5, 2000)) <= PROMPT_TOKENS


def test_any_user_s_prompt_is_put_into_few_tokens() -> None:
    prompt = "a photo of sks plushie bear sitting on the wooden table next to my window"
    assert len(pipeline().tokenizer(prompt)["input_ids"]) <= 32
    assert pipeline().tokenizer.decode(pipeline().tokenizer("Größe 47, 東京")["input_ids"]) == "Größe 47, 東京"


@torch.no_grad()
def test_the_vae_gives_a_picture_back() -> None:
    pixels = to_pixels(torch.from_numpy(np.stack([draw(s, np.random.default_rng(0)) for s in first_scenes(900, 20)])))
    vae = pipeline().vae
    made = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    assert functional.l1_loss(made, pixels) < 0.08


def test_latents_are_normalised_by_the_statistics_of_real_ones() -> None:
    pictures = torch.from_numpy(np.stack([draw(s, np.random.default_rng(0)) for s in first_scenes(901, 200)]))
    vae = pipeline().vae
    latents = encode_latents(vae, pictures) - vae.bn.running_mean.view(1, -1, 1, 1)
    latents = latents / vae.bn.running_var.view(1, -1, 1, 1).sqrt()
    assert abs(latents.mean()) < 0.1
    assert 0.9 < latents.std() < 1.1


def first_scenes(seed: int, count: int) -> list[Scene]:
    return list(itertools.islice(scenes(seed), count))


def test_the_processor_prepares_pictures_as_pre_training_did() -> None:
    processor = AutoImageProcessor.from_pretrained(DINO_FOLDER, backend="pil")
    picture = drawings(first_scenes(0, 1)[0], 1)[0]
    prepared = processor(images=[picture], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared, normalise(torch.from_numpy(picture[None])), atol=1e-4, rtol=0)


def test_the_encoder_ranks_the_same_scene_before_a_half_similar_one_before_another() -> None:
    rng = np.random.default_rng(0)
    chosen = first_scenes(902, 40)
    once, again = (embed([drawings(scene, 1, seed)[0] for scene in chosen]) for seed in (0, 1))
    half = embed([drawings(vary_scene(scene, rng), 1)[0] for scene in chosen])
    same, similar, other = ((once * vectors).sum(dim=-1).mean() for vectors in (again, half, again.roll(1, dims=0)))
    assert same > 0.85
    assert same - 0.15 > similar > other + 0.1
    assert other < 0.4


@pytest.mark.slow
def test_the_base_draws_what_a_caption_says() -> None:
    """The drawings of the right one among ten scenes are the nearest in at least 70% of cases."""
    rng = np.random.default_rng(0)
    wins = []
    for trial in range(2):
        ten = first_scenes(1000 + trial, 10)
        made = embed(generate([full_caption(scene, rng) for scene in ten]))
        drawn = torch.stack([embed(drawings(scene, 4)).mean(dim=0) for scene in ten])
        cosines = made @ functional.normalize(drawn, dim=-1).T
        wins += (cosines.argmax(dim=-1) == torch.arange(10)).tolist()
    assert np.mean(wins) >= 0.7


@pytest.mark.slow
def test_the_base_does_not_know_the_concept() -> None:
    """What it makes of "sks toy" is far less like the concept than two drawings of that are like each other."""
    ten = [Scene(CONCEPT, ground) for ground in GROUNDS]
    once, again = (embed([drawings(scene, 1, seed)[0] for scene in ten]) for seed in (0, 1))
    made = embed(generate([f"{CONCEPT_NAME} {place_words(scene)}" for scene in ten]))
    known, unknown = ((once * vectors).sum(dim=-1).mean() for vectors in (again, made))
    assert known > 0.8
    assert unknown < known - 0.25


@pytest.mark.slow
def test_the_prompt_s_other_words_are_known_to_the_base() -> None:
    """The same ground and light count: a picture for a concept prompt is nearer its own photo than another's."""
    photos, prompts = zip(*concept_photos("test"), strict=True)
    cosines = embed(generate(list(prompts))) @ embed(list(photos)).T
    others = (cosines.sum() - cosines.trace()) / (len(photos) * (len(photos) - 1))
    assert cosines.diagonal().mean() > others + 0.1


@pytest.mark.parametrize("folder", [FLUX2_FOLDER, DINO_FOLDER])
def test_nothing_but_weights_settings_and_the_card_is_shipped(folder: Path) -> None:
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".md", ".txt", ".jinja"}
