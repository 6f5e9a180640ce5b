"""What to load, and what was loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from peftsweep.config.schema import ModelConfig

if TYPE_CHECKING:  # a text job is spared the import of diffusers
    from peftsweep.modalities.image.pipeline import DiffusionParts

QUANTISED = ("int8", "int4")


@dataclass(frozen=True)
class ModelSpec:
    """What to load; two equal specs are the same base model."""

    name: str
    id: str
    revision: str | None = None
    dtype: str = "bfloat16"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    modality: str = "text"


def spec_of(model: ModelConfig) -> ModelSpec:
    """The part of a model's configuration that decides what is loaded."""
    return ModelSpec(
        model.name,
        model.id,
        model.revision,
        model.dtype,
        model.attn_implementation,
        model.trust_remote_code,
        model.modality,
    )


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model. revision: the hub's commit, or a fingerprint of local weights.

    model: a causal language model, with its tokenizer; or the transformer of a diffusion pipeline, with the parts that
    stand around it.
    """

    model: nn.Module
    tokenizer: Any
    revision: str
    is_embedded: bool
    image_parts: DiffusionParts | None = None
