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
from peftsweep.modalities.base_model import ModelSpec
from peftsweep.modalities.fingerprint import fingerprint_folder
from peftsweep.modalities.image.pocket import DINO_FOLDER
from peftsweep.modalities.load_errors import model_errors
from peftsweep.modalities.quiet import quiet

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
        self._model.to(self._device)
        try:
            found = []
            for start in range(0, len(images), BATCH_IMAGES):
                batch = self._processor(images=list(images[start : start + BATCH_IMAGES]), return_tensors="pt")
                pixels = batch["pixel_values"].to(self._device, next(self._model.parameters()).dtype)
                found.append(self._model(pixel_values=pixels).last_hidden_state[:, 0].float().cpu())
        finally:
            self._model.to("cpu")
        return functional.normalize(torch.cat(found), dim=-1)


class TextImageScorer:
    """How well pictures fit texts, by CLIP."""

    def __init__(self, name: str, revision: str, model: Any, processor: Any, device: torch.device) -> None:
        self.name, self.revision = name, revision
        self._model, self._processor, self._device = model, processor, device

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> list[float]:
        """Cosine of picture i and text i."""
        self._model.to(self._device)
        try:
            scores: list[float] = []
            for start in range(0, len(images), BATCH_IMAGES):
                chosen = slice(start, start + BATCH_IMAGES)
                batch = self._processor(
                    images=list(images[chosen]),
                    text=list(texts[chosen]),
                    return_tensors="pt",
                    padding=True,
                    truncation=True,
                )
                outputs = self._model(**batch.to(self._device))
                scores += (outputs.image_embeds * outputs.text_embeds).sum(dim=-1).float().cpu().tolist()
        finally:
            self._model.to("cpu")
        return scores


@lru_cache(maxsize=2)
def load_image_encoder(choice: str, device: torch.device) -> ImageEncoder:
    """choice: "pocket" (shipped, for the drawn world), a hub id (facebook/dinov2-base), or a folder.

    Raises ModelError if there is no such encoder, or it can't be loaded.
    """
    location = str(DINO_FOLDER) if choice == POCKET else str(Path(choice).expanduser())
    with model_errors(ModelSpec(choice, choice)), quiet():
        # Pillow's resizing is the same on every machine; torchvision, where installed, would be taken otherwise.
        processor = AutoImageProcessor.from_pretrained(location, backend="pil")
        model = AutoModel.from_pretrained(location, dtype=torch.float32)
    return ImageEncoder(choice, _revision(model, location), _frozen(model), processor, device)


@lru_cache(maxsize=1)
def load_text_image_scorer(choice: str, device: torch.device) -> TextImageScorer:
    """choice: the hub id or folder of a CLIP-like model. Raises ModelError as load_image_encoder does."""
    location = str(Path(choice).expanduser())
    with model_errors(ModelSpec(choice, choice)), quiet():
        processor = AutoProcessor.from_pretrained(location)
        model = AutoModel.from_pretrained(location, dtype=torch.float32)
    if not hasattr(model, "text_model"):
        rule = "task.clip_model must have an image and a text encoder"
        raise ModelError(Problem(rule, choice, "task.clip_model", "openai/clip-vit-base-patch32 is one."))
    return TextImageScorer(choice, _revision(model, location), _frozen(model), processor, device)


def _frozen(model: Any) -> Any:
    return model.requires_grad_(False).eval()


def _revision(model: Any, location: str) -> str:
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return str(commit)
    settings = [path.read_text(encoding="utf-8") for path in sorted(Path(location).glob("*processor_config.json"))]
    return hashlib.sha256(f"{fingerprint_folder(Path(location))}{settings}".encode()).hexdigest()[:40]
