"""Load a frozen base model: embedded, from a local folder, or from the hub."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from peftsweep.errors import ModelError, Problem
from peftsweep.modalities.base_model import QUANTISED, BaseModel, ModelSpec
from peftsweep.modalities.image.pocket import FLUX2_FOLDER
from peftsweep.modalities.text.pocket import LLAMA_FOLDER

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
EMBEDDED_FOLDERS = {"pocket-llama": LLAMA_FOLDER, "pocket-flux2": FLUX2_FOLDER}
# The file that tells a model's folder of each modality.
INDEX_FILES = {"text": "config.json", "image": "model_index.json"}


def load_base(spec: ModelSpec, device: torch.device, *, keep: bool = False) -> BaseModel:
    """A base model on `device`, in eval mode, all parameters frozen.

    keep: hold an untouched copy on the host, from which the next job of this process gets its model without loading.
    Whatever a method does to its own copy, the next one starts from the same bits. Quantised weights can't be copied
    so, and are loaded anew.
    Raises ModelError: missing, gated or broken model, no network, no CUDA or bitsandbytes for a quantised dtype.
    """
    if spec.dtype in QUANTISED:
        _require_quantisation(spec, device)
        loaded = _load(spec, device)
        return _placed(loaded, loaded.model, device)
    if not keep:
        loaded = _load(spec, torch.device("cpu"))
        return _placed(loaded, loaded.model.to(device), device)
    pristine = _load_once(spec)
    return _placed(pristine, copy.deepcopy(pristine.model).to(device), device)


def _placed(base: BaseModel, model: nn.Module, device: torch.device) -> BaseModel:
    parts = base.image_parts.on(device) if base.image_parts else None
    return dataclasses.replace(base, model=model, image_parts=parts)


@lru_cache(maxsize=1)
def _load_once(spec: ModelSpec) -> BaseModel:
    return _load(spec, torch.device("cpu"))


def _load(spec: ModelSpec, device: torch.device) -> BaseModel:
    location, is_embedded = base_location(spec), spec.id == EMBEDDED
    base = _loader(spec.modality)(spec, location, device, is_embedded=is_embedded)
    origin = "shipped with this package" if is_embedded else spec.id
    log.info("Loaded %s (%s), revision %s.", spec.name, origin, base.revision[:12])
    return base


def base_location(spec: ModelSpec) -> str:
    """The folder or hub id of a model. Raises ModelError for a folder that is none, or an unknown embedded model."""
    if spec.id != EMBEDDED:
        location = _expanded(spec.id)
    elif spec.name in EMBEDDED_FOLDERS:
        location = str(EMBEDDED_FOLDERS[spec.name])
    else:
        fix = f"Choose model={' or model='.join(EMBEDDED_FOLDERS)}, or give a hub id or a folder."
        raise ModelError(Problem("this package ships no model of this name", spec.name, "model.id=embedded", fix))
    _require_folder(spec, location)
    return location


def _loader(modality: str) -> Callable[..., BaseModel]:
    """Imported when asked for: a text job does without diffusers."""
    if modality == "image":
        from peftsweep.modalities.image.loader import load_pipeline

        return load_pipeline
    from peftsweep.modalities.text.loader import load_language_model

    return load_language_model


def _require_quantisation(spec: ModelSpec, device: torch.device) -> None:
    if device.type != "cuda":
        raise ModelError(
            Problem(
                "model.dtype int8 and int4 need a CUDA device", str(device), "model.dtype", "Use bfloat16 or float32."
            )
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            Problem(f"model.dtype={spec.dtype} needs the package bitsandbytes", fix="pip install 'peftsweep[gpu]'.")
        )


def _require_folder(spec: ModelSpec, location: str) -> None:
    """A path is told apart from a hub id before the hub is asked for it."""
    looks_local = location.startswith((".", "/", "~")) or location.count("/") > 1
    if looks_local and not Path(location).is_dir():
        raise ModelError(Problem("model.id must be a hub id or an existing folder", spec.id, "model.id"))
    index = INDEX_FILES[spec.modality]
    if Path(location).is_dir() and not (Path(location) / index).exists():
        raise ModelError(Problem(f"a model folder must hold a {index}", spec.id, "model.id"))


def _expanded(model_id: str) -> str:
    return str(Path(model_id).expanduser()) if model_id.startswith("~") else model_id
