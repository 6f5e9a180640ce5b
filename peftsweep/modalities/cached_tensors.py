"""Tensors kept on disk, named by what they were made from, so that a second job doesn't make them again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftsweep.records.files import writing_whole

log = logging.getLogger(__name__)


def key_of(*parts: Any) -> str:
    """Name of a file for what was made from `parts`."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def stored_or_made(keys: Sequence[str], folder: Path, make: Callable[[Sequence[int]], Tensor]) -> list[Tensor]:
    """The tensor of each key; those that `folder` lacks are the rows of one call of `make` with their numbers."""
    found = {key: load_tensors(folder / f"{key}.safetensors", ["tensor"]) for key in dict.fromkeys(keys)}
    missing = [keys.index(key) for key, tensors in found.items() if tensors is None]
    if missing:
        for number, tensor in zip(missing, make(missing), strict=True):
            found[keys[number]] = [tensor]
            save_tensors({"tensor": tensor}, folder / f"{keys[number]}.safetensors")
    return [tensor for key in keys for tensor in found[key] or ()]


def load_tensors(path: Path, names: Sequence[str]) -> list[Tensor] | None:
    """The named tensors of a file; None where there is no file, or none that can be read: it is made anew then."""
    try:
        stored = load_file(path)
        return [stored[name] for name in names]
    except FileNotFoundError:
        return None
    except (OSError, KeyError, SafetensorError) as error:
        log.warning("The cached tensors in %s can't be read (%s) and are made anew.", path, error)
        return None


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Whole or not at all: jobs that run side by side share the cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing_whole(path, is_shared=True) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
