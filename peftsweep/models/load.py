"""Load a frozen base model and its tokenizer: embedded, from a local folder, or from the hub."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from peftsweep.errors import ModelError, Problem
from peftsweep.pocket import LLAMA_FOLDER

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
EMBEDDED_FOLDERS = {"pocket-llama": LLAMA_FOLDER}
QUANTISED = ("int8", "int4")
# Whose exceptions are about the model or the way to it; huggingface_hub has used requests, httpx and httpx2.
LIBRARIES = ("safetensors", "huggingface_hub", "httpx", "httpcore", "requests", "urllib3")
# What a fingerprint reads of a weight file: all of it up to this size, else a sample of each MiB.
WHOLE_FILE_BYTES = 64 * 2**20
SAMPLE_EVERY_BYTES, SAMPLE_BYTES = 2**20, 4096


@dataclass(frozen=True)
class ModelSpec:
    """What to load; two equal specs are the same base model."""

    name: str
    id: str
    revision: str | None = None
    dtype: str = "bfloat16"
    attn_implementation: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model. revision: the hub's commit, or a fingerprint of local weights."""

    model: nn.Module
    tokenizer: Any
    revision: str
    is_embedded: bool


def load_base(spec: ModelSpec, device: torch.device, *, keep: bool = False) -> BaseModel:
    """A base model on `device`, in eval mode, all parameters frozen.

    keep: hold an untouched copy on the host, from which the next job of this process gets its model without loading.
    Whatever a method does to its own copy, the next one starts from the same bits. Quantised weights can't be copied
    so, and are loaded anew.
    Raises ModelError: missing, gated or broken model, no network, no CUDA or bitsandbytes for a quantised dtype.
    """
    if spec.dtype in QUANTISED:
        _require_quantisation(spec, device)
        return _load(spec, device)
    if not keep:
        loaded = _load(spec, torch.device("cpu"))
        return BaseModel(loaded.model.to(device), loaded.tokenizer, loaded.revision, loaded.is_embedded)
    pristine = _load_once(spec)
    return BaseModel(
        copy.deepcopy(pristine.model).to(device), pristine.tokenizer, pristine.revision, pristine.is_embedded
    )


@lru_cache(maxsize=1)
def _load_once(spec: ModelSpec) -> BaseModel:
    return _load(spec, torch.device("cpu"))


def _load(spec: ModelSpec, device: torch.device) -> BaseModel:
    is_embedded = spec.id == EMBEDDED
    if is_embedded and spec.name not in EMBEDDED_FOLDERS:
        fix = f"Choose model={' or model='.join(EMBEDDED_FOLDERS)}, or give a hub id or a folder."
        raise ModelError(Problem("this package ships no model of this name", spec.name, "model.id=embedded", fix))
    location = str(EMBEDDED_FOLDERS[spec.name]) if is_embedded else _expanded(spec.id)
    _require_folder(spec, location)
    with _explained(spec), _quiet():
        options = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
        config = AutoConfig.from_pretrained(location, **options)
        tokenizer = _load_tokenizer(location, options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location, config=config, output_loading_info=True, **options, **_placement(spec, device)
        )
    model, info = loaded
    _require_all_weights(info["missing_keys"], spec)
    _require_end_token(tokenizer, spec)
    model.requires_grad_(False).eval()
    commit = getattr(config, "_commit_hash", None)
    revision = commit or fingerprint_folder(Path(location))
    log.info(
        "Loaded %s (%s), revision %s.",
        spec.name,
        "shipped with this package" if is_embedded else spec.id,
        revision[:12],
    )
    return BaseModel(model, tokenizer, revision, is_embedded)


def _load_tokenizer(location: str, options: dict[str, Any]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(location, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _placement(spec: ModelSpec, device: torch.device) -> dict[str, Any]:
    if spec.dtype == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": device}}
    if spec.dtype == "int4":
        four_bit = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        return {"quantization_config": four_bit, "device_map": {"": device}}
    return {"dtype": getattr(torch, spec.dtype), "attn_implementation": spec.attn_implementation}


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
    if Path(location).is_dir() and not (Path(location) / "config.json").exists():
        raise ModelError(Problem("a model folder must hold a config.json", spec.id, "model.id"))


def _require_all_weights(missing: Collection[str], spec: ModelSpec) -> None:
    """transformers fills weights that a file lacks with random ones and only warns."""
    if missing:
        rule = f"the weight files must hold every weight; {len(missing)} are missing"
        raise ModelError(Problem(rule, sorted(missing)[:3], spec.id, "Download or copy the model again."))


def _require_end_token(tokenizer: Any, spec: ModelSpec) -> None:
    """Answers are taught to end with it, and generation stops at it."""
    if tokenizer.eos_token_id is None:
        rule = "the tokenizer must have an end-of-sequence token"
        raise ModelError(Problem(rule, source=spec.id, fix="Set eos_token in its tokenizer_config.json."))


def _expanded(model_id: str) -> str:
    return str(Path(model_id).expanduser()) if model_id.startswith("~") else model_id


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """One progress display at a time: ours."""
    before = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _explained(spec: ModelSpec) -> Iterator[None]:
    """Turn what transformers, safetensors and the hub raise into one error that says what to do."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(_diagnose(spec, error)) from error
    except Exception as error:
        if type(error).__module__.startswith(LIBRARIES):
            raise ModelError(_diagnose(spec, error)) from error
        raise


def _diagnose(spec: ModelSpec, error: Exception) -> Problem:
    text = f"{type(error).__name__} {error}".replace(spec.id, "")  # a folder may be called anything
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    advice = {
        ("gated", "401 Client", "403 Client", "Unauthorized", "Forbidden"): (
            "the model is gated",
            "Accept its licence on its hub page and run: hf auth login.",
        ),
        ("RepositoryNotFound", "is not a local folder and is not a valid model identifier"): (
            "the hub has no such model",
            "Check model.id.",
        ),
        ("RevisionNotFound", "is not a valid git identifier"): (
            "the hub has no such revision",
            "Check model.revision.",
        ),
        ("trust_remote_code",): (
            "the model brings its own Python code",
            "Read it, then add model.trust_remote_code=true on the command line.",
        ),
        ("connect", "resolve", "offline", "Network", "couldn't find"): (
            "the model must be on this machine or the hub reachable",
            "Check the network, download it first (hf download), or give a local folder as model.id.",
        ),
        ("Safetensor", "HeaderTooLarge", "header", "deserializ", "mismatch", "size mismatch", "incomplete"): (
            "the weight files must be whole",
            "Download or copy the model again.",
        ),
    }
    for marks, (rule, fix) in advice.items():
        if any(mark.lower() in text.lower() for mark in marks):
            return Problem(f"{rule} ({reason})", spec.id, "model.id", fix)
    return Problem(f"the model must load ({reason})", spec.id, "model.id")


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
