"""Load a frozen base model: embedded, from a local folder, or from the hub; and tell which weights these are."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers.utils import logging as transformers_logging

from peftsweep.config.schema import EMBEDDED, QUANTISED, ModelConfig
from peftsweep.errors import ModelError, Problem
from peftsweep.modalities.base import BaseModel, modality_of
from peftsweep.modalities.quantising import prepare_packing

log = logging.getLogger(__name__)

# What a fingerprint reads of a weight file: all of it up to this size, else a sample of each MiB.
WHOLE_FILE_BYTES = 64 * 2**20
SAMPLE_EVERY_BYTES, SAMPLE_BYTES = 2**20, 4096

_PRISTINE: dict[str, BaseModel] = {}  # by what was loaded; the last one


def load_base(model: ModelConfig, device: torch.device, *, keep: bool = False, in_parts: bool = False) -> BaseModel:
    """A base model on `device`, in eval mode, all parameters frozen.

    keep: hold an untouched copy on the host, from which the next job of this process gets its model without loading.
    Whatever a method does to its own copy, the next one starts from the same bits. Quantised weights can't be copied
    so, and are loaded anew. in_parts: leave the weights on the host, as views into their file, as several devices will
    hold a part each.
    Raises ModelError: missing, gated or broken model, no network, no CUDA or bitsandbytes for a quantised dtype.
    """
    if model.dtype in QUANTISED:
        _require_quantisation(model, device)
    if in_parts:
        is_packed = model.dtype in QUANTISED  # int4: config.check refuses int8
        loaded = _load(dataclasses.replace(model, dtype="bfloat16") if is_packed else model, torch.device("cpu"))
        if is_packed:
            prepare_packing(loaded.model)
        return _placed(loaded, loaded.model, device)
    if model.dtype in QUANTISED:
        loaded = _load(model, device)
        return _placed(loaded, loaded.model, device)
    if not keep:
        loaded = _load(model, torch.device("cpu"))
        return _placed(loaded, loaded.model.to(device), device)
    key = repr(model)
    if key not in _PRISTINE:
        _PRISTINE.clear()
        _PRISTINE[key] = _load(model, torch.device("cpu"))
        if device.type == "cuda":
            _pin(_PRISTINE[key].model)
    return _placed(_PRISTINE[key], _copied(_PRISTINE[key].model, device), device)


def _copied(model: nn.Module, device: torch.device) -> nn.Module:
    """A model of its own on `device`, without a second copy of the weights on the host. What is tied stays tied."""
    copies: dict[int, Any] = {}
    for weight in model.parameters():
        moved = weight.detach().to(device, copy=True, non_blocking=True)
        copies[id(weight)] = nn.Parameter(moved, requires_grad=weight.requires_grad)
    for buffer in model.buffers():
        copies[id(buffer)] = buffer.detach().to(device, copy=True, non_blocking=True)
    return copy.deepcopy(model, copies)  # takes as copied what it finds there


def _pin(model: nn.Module) -> None:
    """Into memory that a GPU reads by itself, several times as fast."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.pin_memory()


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


def quantised_placement(model: ModelConfig, config_class: Any, device: torch.device) -> dict[str, Any]:
    """How transformers or diffusers is told to quantise. config_class: the library's own BitsAndBytesConfig."""
    four_bit = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    options = {"load_in_8bit": True} if model.dtype == "int8" else four_bit
    return {"quantization_config": config_class(**options), "device_map": {"": device}}


def _require_quantisation(model: ModelConfig, device: torch.device) -> None:
    if device.type != "cuda":
        rule, fix = "model.dtype int8 and int4 need a CUDA device", "Use bfloat16 or float32."
        raise ModelError(Problem(rule, str(device), "model.dtype", fix))
    if importlib.util.find_spec("bitsandbytes") is None:
        rule = f"model.dtype={model.dtype} needs the package bitsandbytes"
        raise ModelError(Problem(rule, fix="pip install 'peftsweep[gpu]'."))


def revision_of(location: str, revision: str | None = None) -> str:
    """Which weights have been loaded from a folder or hub id: a fingerprint of the folder, or the hub's commit.

    revision: the branch, tag or commit that was asked for. The commit is that of the hub's cache, where it leads.
    """
    if Path(location).is_dir():
        return fingerprint_folder(Path(location))
    cached = try_to_load_from_cache(location, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else revision or "main"


def fingerprint_folder(folder: Path) -> str:
    """Fingerprint of a model's weights and tokenizer, the same wherever the folder lies.

    Of a large file, a sample of each MiB is read: training changes nearly every number of what it trains, and 100 GB
    must not take minutes.
    """
    digest = hashlib.sha256()
    patterns = ("*.safetensors", "*.bin", "config.json", "tokenizer*", "*.jinja")
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        for block in _sampled_blocks(path):
            digest.update(block)
    return digest.hexdigest()[:40]


def _sampled_blocks(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= WHOLE_FILE_BYTES:
            yield stream.read()
            return
        for start in range(0, size, SAMPLE_EVERY_BYTES):
            stream.seek(start)
            yield stream.read(SAMPLE_BYTES)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of other libraries: one display at a time, ours."""
    # diffusers has its own switch, and is imported for images only.
    switches = [transformers_logging, *([sys.modules["diffusers"].utils.logging] if "diffusers" in sys.modules else [])]
    shown = [switch for switch in switches if switch.is_progress_bar_enabled()]
    for switch in shown:
        switch.disable_progress_bar()
    try:
        yield
    finally:
        for switch in shown:
            switch.enable_progress_bar()
