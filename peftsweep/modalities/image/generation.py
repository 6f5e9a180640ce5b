"""Pictures that a model draws to be judged: from the same seeds in every job, so that all methods start from the same
noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftsweep.modalities.base import BaseModel, Progress, no_progress
from peftsweep.modalities.cached_tensors import key_of, stored_or_made
from peftsweep.modalities.image.encodings import Encodings
from peftsweep.modalities.image.pipeline import DiffusionParts
from peftsweep.modalities.image.settings import ImageGenConfig

NO_PROMPT = ""  # what guidance leads away from
FORMAT_VERSION = 1
# A picture's seed is the first of its kind, plus its prompt's number x SEEDS_APART, plus its number for that prompt.
FIRST_SEEDS = {"valid": 10_000_000, "test": 20_000_000, "drift": 30_000_000, "sample": 40_000_000, "prior": 50_000_000}
SEEDS_APART = 1000


def generation_settings(config: ImageGenConfig) -> dict[str, Any]:
    """What decides how a prompt is drawn, apart from the model and the seed."""
    names = ("resolution", "inference_steps", "guidance", "max_prompt_tokens", "text_encoder_layers")
    return {name: getattr(config, name) for name in names}


class PictureGenerator:
    """Draws prompts with the transformer of a job, whatever method is on it."""

    def __init__(self, parts: DiffusionParts, encodings: Encodings, config: ImageGenConfig, batch_size: int) -> None:
        self.config = config
        self._parts, self._encodings, self._batch_size = parts, encodings, batch_size

    def draw(
        self,
        model: nn.Module,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        doing: str = "",
        progress: Progress = no_progress,
    ) -> np.ndarray:
        """uint8 (n, resolution, resolution, 3): picture i is of prompts[i], from the noise of seeds[i]."""
        with progress(doing, len(prompts)) as advance:
            return self._parts.generate(
                model,
                self._encodings.of_prompts(prompts),
                self._encodings.of_prompts([NO_PROMPT]),
                seeds,
                resolution=self.config.resolution,
                steps=self.config.inference_steps,
                guidance=self.config.guidance,
                batch_size=self._batch_size,
                on_done=advance,
            )


def seeds_of(kind: str, n_prompts: int, each: int) -> list[int]:
    """`each` seeds for every prompt; those of a prompt stand together. kind: a key of FIRST_SEEDS."""
    first = FIRST_SEEDS[kind]
    return [first + SEEDS_APART * prompt + number for prompt in range(n_prompts) for number in range(each)]


def repeated(prompts: Sequence[str], each: int) -> list[str]:
    """Each prompt as often as it is drawn, as seeds_of orders them."""
    return [prompt for prompt in prompts for _ in range(each)]


def prior_pictures(generator: PictureGenerator, base: BaseModel, prompt: str, count: int, cache: Path) -> np.ndarray:
    """uint8 (count, r, r, 3): what the base takes for `prompt`, kept in `cache`. To be asked for before a method is
    attached to it."""
    seeds = [FIRST_SEEDS["prior"] + number for number in range(count)]
    dtype = str(next(base.model.parameters()).dtype)
    asked = [FORMAT_VERSION, base.revision, dtype, generation_settings(generator.config), prompt]

    def draw(chosen: Sequence[int]) -> Tensor:
        return torch.from_numpy(generator.draw(base.model, [prompt] * len(chosen), [seeds[i] for i in chosen]))

    keys = [key_of(asked, seed) for seed in seeds]
    return torch.stack(stored_or_made(keys, cache / "prior", draw)).numpy()
