"""A base model without weights: its architecture on the meta device, from its configuration alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from peftsweep.modalities.base_model import QUANTISED, ModelSpec
from peftsweep.modalities.load_errors import model_errors
from peftsweep.modalities.loading import EMBEDDED, EMBEDDED_FOLDERS, base_location
from peftsweep.modalities.quiet import quiet

ARCHITECTURES = Path(__file__).with_name("architectures.yaml")
# A model's lists of equal blocks -> the key of its configuration that says how many.
BLOCKS = {
    "layers": "num_hidden_layers",
    "transformer_blocks": "num_layers",
    "single_transformer_blocks": "num_single_layers",
}
# Attention of other packages keeps what torch's own kernels keep.
FUSED_ATTENTION = ("sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", None)


@dataclass(frozen=True)
class Skeleton:
    """model: on the meta device, frozen, in the dtype that its layers compute in. source: where the sizes come from.
    config: the transformer's configuration as plain data."""

    model: nn.Module
    source: str
    config: dict[str, Any]


def build_skeleton(spec: ModelSpec, *, one_of_each: bool = False) -> Skeleton:
    """The model of a spec, to be changed at will: many methods in one process share the work of building it.

    Its configuration is that of the embedded model or local folder, of our own table, or of the hub, in this order.
    Quantised weights are in bfloat16 here. one_of_each: a single block of each kind.
    Raises ModelError where there is no configuration.
    """
    kept = _build_once(spec, one_of_each)
    return Skeleton(copy.deepcopy(kept.model), kept.source, dict(kept.config))


@lru_cache(maxsize=4)
def _build_once(spec: ModelSpec, one_of_each: bool) -> Skeleton:
    dtype = torch.bfloat16 if spec.dtype in QUANTISED else getattr(torch, spec.dtype)
    build = _build_transformer if spec.modality == "image" else _build_language_model
    with quiet(), torch.device("meta"):
        model, source, config = build(spec, dtype, one_of_each)
    model.requires_grad_(False)
    return Skeleton(model, source, config)


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


def _build_language_model(
    spec: ModelSpec, dtype: torch.dtype, one_of_each: bool
) -> tuple[nn.Module, str, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    config, source = _language_config(spec)
    if one_of_each:
        config.num_hidden_layers = 1
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:1]
    attention = "sdpa" if spec.attn_implementation in FUSED_ATTENTION else spec.attn_implementation
    with model_errors(spec):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=spec.trust_remote_code
        )
    return model, source, config.to_dict()


def _language_config(spec: ModelSpec) -> tuple[Any, str]:
    from transformers import AutoConfig

    known = _known_architecture(spec)
    if known is not None:
        return AutoConfig.for_model(**known), "the table of architectures"
    location = base_location(spec)
    options = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    with model_errors(spec):
        return AutoConfig.from_pretrained(location, **options), _told(spec)


def _build_transformer(spec: ModelSpec, dtype: torch.dtype, one_of_each: bool) -> tuple[nn.Module, str, dict[str, Any]]:
    from diffusers import Flux2Transformer2DModel

    config, source = _transformer_config(spec)
    if one_of_each:
        config |= dict.fromkeys(depths_of(config), 1)
    model: Any = Flux2Transformer2DModel.from_config({**config, "_class_name": "Flux2Transformer2DModel"})
    return nn.Module.to(model, dtype), source, dict(model.config)  # diffusers' own `to` warns of nothing


def _transformer_config(spec: ModelSpec) -> tuple[dict[str, Any], str]:
    from diffusers import Flux2Transformer2DModel

    known = _known_architecture(spec)
    if known is not None:
        return known, "the table of architectures"
    folder = Path(base_location(spec)) / "transformer"
    if folder.is_dir():
        return json.loads((folder / "config.json").read_text(encoding="utf-8")), _told(spec)
    with model_errors(spec):
        found = Flux2Transformer2DModel.load_config(spec.id, subfolder="transformer", revision=spec.revision)
    return dict(found), _told(spec)


def _known_architecture(spec: ModelSpec) -> dict[str, Any] | None:
    if spec.id == EMBEDDED or Path(spec.id).is_dir():
        return None
    found: dict[str, Any] | None = yaml.safe_load(ARCHITECTURES.read_text(encoding="utf-8")).get(spec.id)
    return found


def _told(spec: ModelSpec) -> str:
    return str(EMBEDDED_FOLDERS.get(spec.name, spec.id)) if spec.id == EMBEDDED else spec.id
