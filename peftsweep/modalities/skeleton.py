"""A base model without weights: its architecture on the meta device, from its configuration alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from peftsweep.config.schema import EMBEDDED, QUANTISED, ModelConfig
from peftsweep.modalities.base import Skeleton, modality_of
from peftsweep.modalities.load_errors import model_errors
from peftsweep.modalities.loading import base_location, quiet

ARCHITECTURES = Path(__file__).with_name("architectures.yaml")
# A model's lists of equal blocks -> the key of its configuration that says how many.
BLOCKS = {
    "layers": "num_hidden_layers",
    "layer": "num_hidden_layers",
    "transformer_blocks": "num_layers",
    "single_transformer_blocks": "num_single_layers",
}

_BUILT: dict[str, Skeleton] = {}  # by what was built; the last few
_MOST_BUILT = 4


def build_skeleton(model: ModelConfig, *, one_of_each: bool = False) -> Skeleton:
    """The model of a configuration, to be changed at will: many methods in one process share the work of building it.

    Its configuration is that of the embedded model or local folder, of our own table, or of the hub, in this order.
    Quantised weights are in bfloat16 here. one_of_each: a single block of each kind.
    Raises ModelError where there is no configuration.
    """
    key = f"{model!r} {one_of_each}"
    if key not in _BUILT:
        dtype = torch.bfloat16 if model.dtype in QUANTISED else getattr(torch, model.dtype)
        with quiet(), torch.device("meta"):
            built = modality_of(model).build_skeleton(model, dtype, one_of_each=one_of_each)
        built.model.requires_grad_(False)
        while len(_BUILT) >= _MOST_BUILT:
            del _BUILT[next(iter(_BUILT))]
        _BUILT[key] = built
    kept = _BUILT[key]
    return replace(kept, model=copy.deepcopy(kept.model), config=dict(kept.config))


def known_architecture(model: ModelConfig) -> dict[str, Any] | None:
    """The configuration of a hub model that stands in our own table; None for any other model."""
    if model.id == EMBEDDED or Path(model.id).is_dir():
        return None
    return _architectures().get(model.id)


def transformers_config(model: ModelConfig) -> Any:
    """The configuration of a transformers model, without its weights: our own table's, else the folder's or the hub's.
    Raises ModelError where there is none."""
    from transformers import AutoConfig

    known = known_architecture(model)
    if known is not None:
        return AutoConfig.for_model(**known)
    with model_errors(model.id):
        return AutoConfig.from_pretrained(
            base_location(model), revision=model.revision, trust_remote_code=model.trust_remote_code
        )


@cache
def _architectures() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(ARCHITECTURES.read_text(encoding="utf-8"))
    return found


def described_source(model: ModelConfig) -> str:
    """Where the configuration of a model comes from."""
    if known_architecture(model) is not None:
        return "the table of architectures"
    return str(modality_of(model).embedded_models.get(model.name, model.id)) if model.id == EMBEDDED else model.id


def repeat_blocks(model: nn.Module, depths: Mapping[str, int]) -> None:
    """Copy the one block of each kind until there are as many as `depths` says."""
    for module in list(model.modules()):
        for blocks, depth in BLOCKS.items():
            found = getattr(module, blocks, None)
            if isinstance(found, nn.ModuleList) and depth in depths:
                found.extend(_numbered(copy.deepcopy(found[0]), index) for index in range(len(found), depths[depth]))
                _set_depth(module, depth, depths[depth])


def _numbered(block: nn.Module, index: int) -> nn.Module:
    """A cache of keys and values is kept by this number."""
    for module in block.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = index  # type: ignore[assignment]
    return block


def _set_depth(module: nn.Module, depth: str, count: int) -> None:
    """transformers runs as many blocks as its configuration says; diffusers, whose configuration is frozen, all."""
    config: Any = getattr(module, "config", None)
    if hasattr(config, depth) and not isinstance(config, dict):
        setattr(config, depth, count)
        if getattr(config, "layer_types", None):  # full or sliding attention, block by block
            config.layer_types = config.layer_types[:1] * count


def depths_of(config: Mapping[str, Any]) -> dict[str, int]:
    """How many blocks of each kind a configuration has."""
    return {depth: config[depth] for depth in BLOCKS.values() if isinstance(config.get(depth), int)}
