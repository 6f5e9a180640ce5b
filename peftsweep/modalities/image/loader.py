"""Load a diffusion pipeline: the transformer that methods are put on, and the parts around it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from diffusers import BitsAndBytesConfig, DiffusionPipeline, Flux2Transformer2DModel

from peftsweep.config.schema import EMBEDDED, QUANTISED, ModelConfig
from peftsweep.errors import ModelError, Problem
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.image.pipeline import DiffusionParts
from peftsweep.modalities.load_errors import model_errors, require_all_weights
from peftsweep.modalities.loading import fingerprint_folder, quantised_placement, quiet

PIPELINES = ("Flux2KleinPipeline",)
COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


def load_pipeline(spec: ModelConfig, location: str, device: torch.device) -> BaseModel:
    """The transformer of a pipeline, in eval mode, frozen, and its parts. location: a folder or a hub id.

    device: where a quantised transformer is placed; others are loaded on the host. Raises ModelError as load_base does,
    and for a pipeline of another class.
    """
    dtype = torch.bfloat16 if spec.dtype in QUANTISED else getattr(torch, spec.dtype)
    placement = quantised_placement(spec, BitsAndBytesConfig, device) if spec.dtype in QUANTISED else {}
    with model_errors(spec.id), quiet():
        folder = Path(location)
        if not folder.is_dir():  # of one from the hub, the snapshot, whose name is the commit
            folder = Path(DiffusionPipeline.download(location, revision=spec.revision))
        _require_components(folder, spec)
        transformer, info = Flux2Transformer2DModel.from_pretrained(
            folder, subfolder="transformer", output_loading_info=True, dtype=dtype, **placement
        )
        require_all_weights(info["missing_keys"], spec.id)
        revision = folder.name if folder != Path(location) else fingerprint_pipeline(folder)
        parts = DiffusionParts(folder, f"{revision} {spec.dtype}", dtype)
    transformer.requires_grad_(False).eval()
    return BaseModel(transformer, None, revision, spec.id == EMBEDDED, parts)


def fingerprint_pipeline(folder: Path) -> str:
    """Fingerprint of all that makes the pictures, the same wherever the folder lies."""
    parts = [fingerprint_folder(folder / component) for component in COMPONENTS if (folder / component).is_dir()]
    settings = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*/*config.json"))]
    return hashlib.sha256(json.dumps([*parts, *settings]).encode()).hexdigest()[:40]


def _require_components(folder: Path, spec: ModelConfig) -> None:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if index.get("_class_name") not in PIPELINES:
        rule = f"the pipeline must be a {' or '.join(PIPELINES)}"
        raise ModelError(Problem(rule, index.get("_class_name"), spec.id, "Choose a FLUX.2 klein model."))
    missing = [name for name in COMPONENTS if not (folder / name).is_dir()]
    if missing:
        rule = f"a pipeline folder must hold {', '.join(COMPONENTS)}"
        raise ModelError(Problem(rule, f"without {', '.join(missing)}", spec.id, "Download or save it whole."))
