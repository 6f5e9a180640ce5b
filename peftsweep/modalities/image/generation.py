"""Pictures that a model draws to be judged: from the same seeds in every job, so that all methods start from the same
noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.cached_tensors import key_of, stored_or_made
from peftsweep.modalities.image.settings import ImageGenConfig

NO_PROMPT = ""  # what guidance leads away from
FORMAT_VERSION = 1
# A picture's seed is the first of its kind, plus its prompt's number x SEEDS_APART, plus its number for that prompt.
FIRST_SEEDS = {"valid": 10_000_000, "test": 20_000_000, "drift": 30_000_000, "sample": 40_000_000, "prior": 50_000_000}
SEEDS_APART = 1000
# For pictures beside its photos (huggingface/peft, method_comparison/image-gen): figures can be laid side by side.
REFERENCE_DRIFT_PROMPTS = (
    "a photo of cat",
    "a color drawing of cat",
    "cat sitting in a bathtub",
    "cat looks into a mirror",
    "a photo of cat next to a tree",
    "the Mona Lisa but she looks angry",
    "a dog holding a sign that says hello world",
    "a photo of the Eiffel tower at night",
    "an astronaut riding a horse",
    "3d design concept of a chair that looks like an avocado",
)
REFERENCE_SAMPLE_PROMPTS = (
    "a photo of sks cat",
    "a color drawing of sks cat",
    "sks cat at the beach",
    "a photo of sks dog",
    "a photo of an orange cat",
)


def generation_settings(config: ImageGenConfig) -> dict[str, Any]:
    """What decides how a prompt is drawn, apart from the model and the seed."""
    names = ("resolution", "inference_steps", "guidance", "max_prompt_tokens", "text_encoder_layers")
    return {name: getattr(config, name) for name in names}


def seeds_of(kind: str, n_prompts: int, each: int) -> list[int]:
    """`each` seeds for every prompt; those of a prompt stand together. kind: a key of FIRST_SEEDS."""
    first = FIRST_SEEDS[kind]
    return [first + SEEDS_APART * prompt + number for prompt in range(n_prompts) for number in range(each)]


def repeated(prompts: Sequence[str], each: int) -> list[str]:
    """Each prompt as often as it is drawn, as seeds_of orders them."""
    return [prompt for prompt in prompts for _ in range(each)]


def prior_pictures(
    draw: Callable[[list[str], list[int]], np.ndarray], base: BaseModel, config: ImageGenConfig, cache: Path
) -> np.ndarray:
    """uint8 (prior_photos, r, r, 3): what the base takes for its prior_prompt, kept in `cache`. To be asked for before
    a method is attached to it. draw: pictures of prompts, from the noise of as many seeds."""
    seeds = [FIRST_SEEDS["prior"] + number for number in range(config.prior_photos)]
    dtype, prompt = str(next(base.model.parameters()).dtype), config.prior_prompt or ""
    asked = [FORMAT_VERSION, base.revision, dtype, generation_settings(config), prompt]

    def make(chosen: Sequence[int]) -> Tensor:
        return torch.from_numpy(draw([prompt] * len(chosen), [seeds[i] for i in chosen]))

    keys = [key_of(asked, seed) for seed in seeds]
    return torch.stack(stored_or_made(keys, cache / "prior", make)).numpy()
