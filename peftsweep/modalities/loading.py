"""Load a frozen base model: embedded, from a local folder, or from the hub."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import logging
from pathlib import Path

import torch
from torch import nn

from peftsweep.config.schema import EMBEDDED, QUANTISED, ModelConfig
from peftsweep.errors import ModelError, Problem
from peftsweep.modalities.base import BaseModel, modality_of

log = logging.getLogger(__name__)

_PRISTINE: dict[str, BaseModel] = {}  # by what was loaded; the last one


def load_base(model: ModelConfig, device: torch.device, *, keep: bool = False) -> BaseModel:
    """A base model on `device`, in eval mode, all parameters frozen.

    keep: hold an untouched copy on the host, from which the next job of this process gets its model without loading.
    Whatever a method does to its own copy, the next one starts from the same bits. Quantised weights can't be copied
    so, and are loaded anew.
    Raises ModelError: missing, gated or broken model, no network, no CUDA or bitsandbytes for a quantised dtype.
    """
    if model.dtype in QUANTISED:
        _require_quantisation(model, device)
        loaded = _load(model, device)
        return _placed(loaded, loaded.model, device)
    if not keep:
        loaded = _load(model, torch.device("cpu"))
        return _placed(loaded, loaded.model.to(device), device)
    key = repr(model)
    if key not in _PRISTINE:
        _PRISTINE.clear()
        _PRISTINE[key] = _load(model, torch.device("cpu"))
    return _placed(_PRISTINE[key], copy.deepcopy(_PRISTINE[key].model).to(device), device)


def _placed(base: BaseModel, model: nn.Module, device: torch.device) -> BaseModel:
    return dataclasses.replace(base, model=model, parts=base.parts.on(device) if base.parts else None)


def _load(model: ModelConfig, device: torch.device) -> BaseModel:
    base = modality_of(model).load(model, base_location(model), device)
    origin = "shipped with this package" if base.is_embedded else model.id
    log.info("Loaded %s (%s), revision %s.", model.name, origin, base.revision[:12])
    return base


def base_location(model: ModelConfig) -> str:
    """The folder or hub id of a model. Raises ModelError for a folder that is none, or an unknown embedded model."""
    modality = modality_of(model)
    if model.id != EMBEDDED:
        location = str(Path(model.id).expanduser()) if model.id.startswith("~") else model.id
    elif model.name in modality.embedded_models:
        location = str(modality.embedded_models[model.name])
    else:
        fix = f"Choose model={' or model='.join(modality.embedded_models)}, or give a hub id or a folder."
        raise ModelError(Problem("this package ships no such model", model.name, "model.id=embedded", fix))
    looks_local = location.startswith((".", "/", "~")) or location.count("/") > 1
    if looks_local and not Path(location).is_dir():  # told apart from a hub id before the hub is asked for it
        raise ModelError(Problem("model.id must be a hub id or an existing folder", model.id, "model.id"))
    if Path(location).is_dir() and not (Path(location) / modality.index_file).exists():
        raise ModelError(Problem(f"a model folder must hold a {modality.index_file}", model.id, "model.id"))
    return location


def _require_quantisation(model: ModelConfig, device: torch.device) -> None:
    if device.type != "cuda":
        rule, fix = "model.dtype int8 and int4 need a CUDA device", "Use bfloat16 or float32."
        raise ModelError(Problem(rule, str(device), "model.dtype", fix))
    if importlib.util.find_spec("bitsandbytes") is None:
        rule = f"model.dtype={model.dtype} needs the package bitsandbytes"
        raise ModelError(Problem(rule, fix="pip install 'peftsweep[gpu]'."))
