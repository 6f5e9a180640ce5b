"""What one can choose of diffusion models and their tasks, and what of it can't go together. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from peftsweep.config.schema import SOURCES, ModelConfig, TaskConfig, number, one_of
from peftsweep.errors import Problem

NOISE_DENSITIES = ("uniform", "logit_normal", "mode", "sigma_sqrt")
PIXELS_PER_TOKEN = 16  # of FLUX.2: the VAE makes a latent of 8 x 8 pixels, the transformer a token of 2 x 2 latents


@dataclass
class PipelineConfig:
    """How a diffusion pipeline wants to be used: what it was trained for."""

    resolution: int = number(512, low=16)  # pixels, width and height
    max_prompt_tokens: int = number(512, low=1)  # prompts are padded, or cut, to as many
    text_encoder_layers: list[int] = field(default_factory=lambda: [9, 18, 27])  # hidden states the transformer reads


@dataclass
class DiffusionModelConfig(ModelConfig):
    """A diffusion pipeline."""

    pipeline: PipelineConfig = field(default_factory=PipelineConfig)


@dataclass
class ImageGenConfig(TaskConfig):
    """A new concept from a handful of photos, judged by how much generated pictures look like photos held out."""

    modality: str = "image"
    source: str = one_of("auto", SOURCES)  # auto: files if images is given, embedded for embedded models, else hub
    images: str | None = None  # a folder of photos with metadata.jsonl (file_name, prompt), or with instance_prompt
    dataset: str = "peft-internal-testing/cat-image-dataset"  # hub data set with a column `image`
    instance_prompt: str | None = None  # one prompt for all photos
    prompts: list[str] = field(default_factory=list)  # hub: one for each photo, in the data set's order
    valid_photos: int | None = number(None, low=1)  # null: a fifth of the photos, 2 at most
    test_photos: int | None = number(None, low=1)  # null: a fifth of the photos, 4 at most
    resolution: int = number(512, low=16)  # pixels, width and height
    augment: bool = False  # also train on randomly cropped and mirrored photos
    prior_photos: int = number(0, low=0)  # pictures of prior_prompt, made by the base, that are trained on too
    prior_prompt: str | None = None  # the class of the concept: "a photo of a cat"
    prior_weight: float = number(1.0, above=0)  # weight of their loss
    noise_density: str = one_of("uniform", NOISE_DENSITIES)  # how noise levels are drawn in training
    logit_mean: float = 0.0  # of logit_normal
    logit_std: float = number(1.0, above=0)  # of logit_normal
    mode_scale: float = 1.29  # of mode
    inference_steps: int = number(20, low=1)  # denoising steps of a picture
    guidance: float = number(3.5, low=1)  # classifier-free guidance; 1: none
    max_prompt_tokens: int = number(512, low=1)
    text_encoder_layers: list[int] = field(default_factory=lambda: [9, 18, 27])  # hidden states the transformer reads
    valid_seeds: int = number(1, low=0)  # pictures for each validation prompt; 0: valid/loss alone
    test_seeds: int = number(3, low=1)  # pictures for each test prompt
    drift_prompts: list[str] | None = None  # unrelated to the concept; null: the embedded world's; []: no drift
    drift_seeds: int = number(1, low=1)  # pictures for each of them
    sample_prompts: list[str] | None = None  # only to be looked at; null: the embedded world's
    encoder: str = "auto"  # what compares pictures: a hub id or folder; auto: pocket, else facebook/dinov2-base
    clip_model: str | None = None  # also compare pictures with their prompts, by this CLIP model


def photo_problems(task: ImageGenConfig) -> Iterator[Problem]:
    """What doesn't go together in the settings of a task on photos."""
    if task.images is not None and not Path(task.images).is_dir():
        yield Problem("task.images must be an existing folder of photos", task.images)
    if task.source == "files" and task.images is None:
        yield Problem("task.source=files needs task.images")
    if task.images is None and task.instance_prompt is not None:
        yield Problem("task.instance_prompt goes with task.images", task.instance_prompt)
    if task.prior_photos and not task.prior_prompt:
        fix = "Name the class of the concept: task.prior_prompt='a photo of a cat'."
        yield Problem("prior preservation needs task.prior_prompt", task.prior_photos, "task.prior_photos", fix)


def photo_tokens(task: ImageGenConfig) -> int:
    """Latent and prompt tokens of one photo of a batch, and of the picture of its class that comes with it."""
    tokens = (task.resolution // PIXELS_PER_TOKEN) ** 2 + task.max_prompt_tokens
    return 2 * tokens if task.prior_photos else tokens
