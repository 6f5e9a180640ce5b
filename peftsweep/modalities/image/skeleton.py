"""The transformer of a diffusion pipeline without weights, from its configuration alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from torch import nn

from peftsweep.config.schema import ModelConfig
from peftsweep.modalities.base import Skeleton
from peftsweep.modalities.load_errors import model_errors
from peftsweep.modalities.loading import base_location
from peftsweep.modalities.skeleton import TABLE, depths_of, described_source, known_architecture


def build_transformer_skeleton(model: ModelConfig, dtype: torch.dtype, *, one_of_each: bool) -> Skeleton:
    """See `modalities.base.Modality.build_skeleton`."""
    config, source = _configuration(model)
    if one_of_each:
        config |= dict.fromkeys(depths_of(config), 1)
    built: Any = Flux2Transformer2DModel.from_config({**config, "_class_name": "Flux2Transformer2DModel"})
    return Skeleton(nn.Module.to(built, dtype), source, dict(built.config))  # diffusers' own `to` warns of nothing


def _configuration(model: ModelConfig) -> tuple[dict[str, Any], str]:
    known = known_architecture(model)
    if known is not None:
        return dict(known), TABLE
    folder = Path(base_location(model)) / "transformer"
    if folder.is_dir():
        return json.loads((folder / "config.json").read_text(encoding="utf-8")), described_source(model)
    with model_errors(model.id):
        found = Flux2Transformer2DModel.load_config(model.id, subfolder="transformer", revision=model.revision)
    return dict(found), described_source(model)
