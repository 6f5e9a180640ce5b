"""Checkpoints to resume from: everything that changes while training, so that a resumed job repeats the same bits on a
CPU."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from peftsweep.errors import DataError, Problem
from peftsweep.job.loop import TrainingState
from peftsweep.memory.probe import Carried
from peftsweep.records.files import CHECKPOINT_FILE, writing_whole

STATE = ("step", "tokens", "skipped_steps", "owes_validation")
CONTENT = {"weights", "optimizer", "scheduler", "scaler", *STATE, "random", "carried", "mlflow_run_id", "extra"}


def save_checkpoint(
    folder: Path, model: nn.Module, state: TrainingState, carried: Carried, run_id: str | None, extra: dict[str, Any]
) -> None:
    """Write checkpoint.pt whole or not at all. extra: what the method keeps outside the model's parameters and
    buffers."""
    content = {
        "weights": changing_weights(model),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "scaler": state.scaler.state_dict(),
        **{name: getattr(state, name) for name in STATE},
        "random": random_state(),
        "carried": dataclasses.asdict(carried),
        "mlflow_run_id": run_id,
        "extra": extra,
    }
    with writing_whole(folder / CHECKPOINT_FILE) as partial:
        torch.save(content, partial)


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read checkpoint.pt without running any code that it may hold.

    Raises:
        DataError: the folder has none, or it is not readable.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        fix = "A job leaves one when it is stopped, and every ten minutes or hparams.checkpoint_every steps."
        raise DataError(Problem("the folder to resume must hold a checkpoint", str(folder), "resume", fix))
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(Problem(f"the checkpoint must be readable ({error})", str(path), "resume")) from error
    if not isinstance(content, dict) or content.keys() != CONTENT:
        raise DataError(Problem("the checkpoint must be one of this version of peftsweep", str(path), "resume"))
    return content


def restore_checkpoint(content: dict[str, Any], model: nn.Module, state: TrainingState) -> None:
    """Put a checkpoint into a model and an optimizer that were built as for a new job.

    Raises:
        DataError: it is of another model or method.
    """
    own, stored = _tensors(model), content["weights"]
    if other := [name for name, tensor in stored.items() if name not in own or own[name].shape != tensor.shape]:
        rule = "a job resumes with the model and method of its checkpoint; these weights differ"
        raise DataError(Problem(rule, other[:3], "resume", "Resume with the settings of the interrupted job."))
    for name, tensor in stored.items():
        own[name].detach().copy_(tensor)
    state.optimizer.load_state_dict(content["optimizer"])
    state.scheduler.load_state_dict(content["scheduler"])
    if content["scaler"]:
        state.scaler.load_state_dict(content["scaler"])
    for name in STATE:
        setattr(state, name, content[name])
    restore_random_state(content["random"])


def changing_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that training may change: all but the frozen weights of the base model."""
    return {
        name: tensor.detach()
        for name, tensor in _tensors(model).items()
        if not isinstance(model, PeftModel) or tensor.requires_grad or not _is_base_weight(name)
    }


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _is_base_weight(name: str) -> bool:
    """By peft's naming: wrapped layers keep theirs under base_layer; what was not wrapped ends in plain weight or bias,
    and an adapter's own tensors are named after the adapter."""
    return ".base_layer." in name or (name.endswith((".weight", ".bias")) and ".default." not in name)


@contextmanager
def chance_untouched() -> Iterator[None]:
    """What is drawn inside changes nothing about what is drawn afterwards."""
    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)


def random_state() -> dict[str, Any]:
    """All states, in types that `torch.load(weights_only=True)` reads."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],  # of the current device
    }


def restore_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
