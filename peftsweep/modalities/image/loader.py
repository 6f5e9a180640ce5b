"""Load a diffusion pipeline: the transformer that methods are put on, and the parts around it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import BitsAndBytesConfig, DiffusionPipeline, Flux2Transformer2DModel

from peftsweep.config.schema import EMBEDDED, QUANTISED, ModelConfig
from peftsweep.errors import ModelError, Problem
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.image.pipeline import DiffusionParts
from peftsweep.modalities.load_errors import model_errors, require_all_weights
from peftsweep.modalities.loading import fingerprint_folder, quiet

PIPELINES = ("Flux2KleinPipeline",)
COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


def load_pipeline(spec: ModelConfig, location: str, device: torch.device) -> BaseModel:
    """The transformer of a pipeline, in eval mode, frozen, and its parts. location: a folder or a hub id.

    device: where a quantised transformer is placed; others are loaded on the host. Raises ModelError as load_base does,
    and for a pipeline of another class.
    """
    with model_errors(spec.id), quiet():
        folder = _fetched(location, spec)
        _require_components(folder, spec)
        transformer, info = Flux2Transformer2DModel.from_pretrained(
            folder, subfolder="transformer", output_loading_info=True, **_placement(spec, device)
        )
        require_all_weights(info["missing_keys"], spec.id)
        revision = folder.name if folder != Path(location) else fingerprint_pipeline(folder)
        parts = DiffusionParts(folder, f"{revision} {spec.dtype}", _dtype_of_parts(spec))
    transformer.requires_grad_(False).eval()
    return BaseModel(transformer, None, revision, spec.id == EMBEDDED, parts)


def fingerprint_pipeline(folder: Path) -> str:
    """Fingerprint of all that makes the pictures, the same wherever the folder lies."""
    parts = [fingerprint_folder(folder / component) for component in COMPONENTS if (folder / component).is_dir()]
    settings = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*/*config.json"))]
    return hashlib.sha256(json.dumps([*parts, *settings]).encode()).hexdigest()[:40]


def _fetched(location: str, spec: ModelConfig) -> Path:
    """The folder of a pipeline; of one from the hub, the snapshot, whose name is the commit."""
    if Path(location).is_dir():
        return Path(location)
    return Path(DiffusionPipeline.download(location, revision=spec.revision))


def _require_components(folder: Path, spec: ModelConfig) -> None:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if index.get("_class_name") not in PIPELINES:
        rule = f"the pipeline must be a {' or '.join(PIPELINES)}"
        raise ModelError(Problem(rule, index.get("_class_name"), spec.id, "Choose a FLUX.2 klein model."))
    missing = [name for name in COMPONENTS if not (folder / name).is_dir()]
    if missing:
        rule = f"a pipeline folder must hold {', '.join(COMPONENTS)}"
        raise ModelError(Problem(rule, f"without {', '.join(missing)}", spec.id, "Download or save it whole."))


def _placement(spec: ModelConfig, device: torch.device) -> dict[str, Any]:
    if spec.dtype not in QUANTISED:
        return {"dtype": getattr(torch, spec.dtype)}
    if spec.dtype == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return {"quantization_config": config, "dtype": torch.bfloat16, "device_map": {"": device}}


def _dtype_of_parts(spec: ModelConfig) -> torch.dtype:
    return torch.bfloat16 if spec.dtype in QUANTISED else getattr(torch, spec.dtype)
