"""What a diffusion model reads, computed once: embeddings of prompts and latents of pictures.

Both are kept on disk by what they were made from, a file each, so that a second job loads neither text encoder nor VAE.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftsweep.modalities.cached_tensors import key_of, stored_or_made
from peftsweep.modalities.image.encoders import ImageEncoder
from peftsweep.modalities.image.photos import Photo, centre_square
from peftsweep.modalities.image.pipeline import DiffusionParts

log = logging.getLogger(__name__)

FORMAT_VERSION = 1


class Encodings:
    """Embeddings and latents of one pipeline, on the host."""

    def __init__(self, parts: DiffusionParts, cache: Path, text_options: Mapping[str, Any]) -> None:
        """text_options: max_tokens and layers, see DiffusionParts.encode_prompts."""
        self._parts, self._cache, self._text_options = parts, cache, dict(text_options)
        self._known: dict[str, Tensor] = {}

    def learn_prompts(self, prompts: Sequence[str]) -> None:
        """Have the embeddings of all these. The text encoder is loaded once for those that are new, so name many."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if not new:
            return
        keys = [key_of(FORMAT_VERSION, self._parts.fingerprint, self._text_options, prompt) for prompt in new]

        def encode(chosen: Sequence[int]) -> Tensor:
            log.info("Encoding %d prompts.", len(chosen))
            return self._parts.encode_prompts([new[number] for number in chosen], **self._text_options)

        self._known |= dict(zip(new, stored_or_made(keys, self._cache / "prompts", encode), strict=True))

    def of_prompts(self, prompts: Sequence[str]) -> Tensor:
        """(n, s, d), in the text encoder's dtype."""
        self.learn_prompts(prompts)
        return torch.stack([self._known[prompt] for prompt in prompts])

    def of_pictures(self, pictures: np.ndarray) -> Tensor:
        """uint8 (n, h, w, 3) -> latents (n, c, h', w'), float32."""
        digests = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]
        keys = [key_of(FORMAT_VERSION, self._parts.fingerprint, pictures.shape[1:], digest) for digest in digests]

        def encode(chosen: Sequence[int]) -> Tensor:
            log.info("Encoding %d pictures.", len(chosen))
            pixels = torch.from_numpy(pictures[list(chosen)]).permute(0, 3, 1, 2).float()
            return self._parts.encode_images(pixels / 127.5 - 1).float()

        return torch.stack(stored_or_made(keys, self._cache / "latents", encode))


class EncodedPhotos:
    """The photos of one split, and what is made of them once."""

    def __init__(self, photos: list[Photo], encodings: Encodings, encoder: Callable[[], ImageEncoder]) -> None:
        self.photos, self._encodings, self._encoder = photos, encodings, encoder
        self.prompts = [photo.prompt for photo in photos]

    @cached_property
    def squares(self) -> np.ndarray:
        """uint8 (n, r, r, 3)."""
        return np.stack([centre_square(photo.pixels) for photo in self.photos])

    @cached_property
    def latents(self) -> Tensor:
        """(n, c, h, w)."""
        return self._encodings.of_pictures(self.squares)

    @cached_property
    def embeddings(self) -> Tensor:
        """(n, d), of length 1."""
        return self._encoder().embed(list(self.squares))
