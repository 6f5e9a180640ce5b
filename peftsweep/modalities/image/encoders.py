"""Encoders that compare pictures with pictures (DINO), or with texts (CLIP)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModel, AutoProcessor

from peftsweep.errors import ModelError, Problem
from peftsweep.modalities.image.pocket import DINO_FOLDER
from peftsweep.modalities.load_errors import model_errors
from peftsweep.modalities.loading import quiet, revision_of
from peftsweep.modalities.wrapped import visiting

POCKET = "pocket"
BATCH_IMAGES = 32


class ImageEncoder:
    """Turns pictures into vectors whose cosine says how much alike they look. Its device is only visited."""

    def __init__(self, name: str, revision: str, model: nn.Module, processor: Any, device: torch.device) -> None:
        self.name, self.revision = name, revision
        self._model, self._processor, self._device = model, processor, device

    @torch.no_grad()
    def embed(self, images: Sequence[np.ndarray]) -> Tensor:
        """(n, d), float32 of length 1, on the host: the CLS token of the last layer, as in the reference benchmark.

        images: uint8 (h, w, 3) each, of any sizes.
        """
        found = []
        with visiting(self._model, self._device) as model:
            for start in range(0, len(images), BATCH_IMAGES):
                batch = self._processor(images=list(images[start : start + BATCH_IMAGES]), return_tensors="pt")
                pixels = batch["pixel_values"].to(self._device, next(model.parameters()).dtype)
                found.append(model(pixel_values=pixels).last_hidden_state[:, 0].float().cpu())
        return functional.normalize(torch.cat(found), dim=-1)


class TextImageScorer:
    """How well pictures fit texts, by CLIP."""

    def __init__(self, name: str, revision: str, model: Any, processor: Any, device: torch.device) -> None:
        self.name, self.revision = name, revision
        self._model, self._processor, self._device = model, processor, device

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> list[float]:
        """Cosine of picture i and text i."""
        scores: list[float] = []
        options = {"return_tensors": "pt", "padding": True, "truncation": True}
        with visiting(self._model, self._device) as model:
            for start in range(0, len(images), BATCH_IMAGES):
                chosen = slice(start, start + BATCH_IMAGES)
                batch = self._processor(images=list(images[chosen]), text=list(texts[chosen]), **options)
                outputs = model(**batch.to(self._device))
                scores += (outputs.image_embeds * outputs.text_embeds).sum(dim=-1).float().cpu().tolist()
        return scores


@lru_cache(maxsize=2)
def load_image_encoder(choice: str, device: torch.device) -> ImageEncoder:
    """choice: "pocket" (shipped, for the drawn world), a hub id (facebook/dinov2-base), or a folder.

    Raises ModelError if there is no such encoder, or it can't be loaded.
    """
    # Pillow's resizing is the same on every machine; torchvision, where installed, would be taken otherwise.
    loaded = _load(choice, DINO_FOLDER if choice == POCKET else Path(choice), AutoImageProcessor, backend="pil")
    return ImageEncoder(choice, *loaded, device)


@lru_cache(maxsize=1)
def load_text_image_scorer(choice: str, device: torch.device) -> TextImageScorer:
    """choice: the hub id or folder of a CLIP-like model. Raises ModelError as load_image_encoder does."""
    revision, model, processor = _load(choice, Path(choice), AutoProcessor)
    if not hasattr(model, "text_model"):
        rule = "task.clip_model must have an image and a text encoder"
        raise ModelError(Problem(rule, choice, "task.clip_model", "openai/clip-vit-base-patch32 is one."))
    return TextImageScorer(choice, revision, model, processor, device)


def _load(choice: str, path: Path, processor_class: Any, **options: Any) -> tuple[str, Any, Any]:
    """Revision, frozen model, and processor."""
    location = path.expanduser()
    with model_errors(choice), quiet():
        processor = processor_class.from_pretrained(str(location), **options)
        model: Any = AutoModel.from_pretrained(str(location), dtype=torch.float32)
    revision = revision_of(str(location))
    if location.is_dir():  # what pictures go through before the weights counts too
        settings = [path.read_text(encoding="utf-8") for path in sorted(location.glob("*processor_config.json"))]
        revision = hashlib.sha256(f"{revision}{settings}".encode()).hexdigest()[:40]
    return revision, model.requires_grad_(False).eval(), processor
