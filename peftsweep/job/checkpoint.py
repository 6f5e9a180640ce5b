"""Checkpoints to resume from: everything that changes while training, so that a resumed job repeats the same bits on a
CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from peftsweep.errors import DataError, Problem
from peftsweep.job.loop import TrainingState
from peftsweep.job.seeding import random_state, restore_random_state
from peftsweep.memory.probe import Carried
from peftsweep.records.files import CHECKPOINT_FILE

CONTENT = {"weights", "optimizer", "scheduler", "step", "tokens", "random", "carried", "mlflow_run_id", "extra"}


def save_checkpoint(
    folder: Path, model: nn.Module, state: TrainingState, carried: Carried, run_id: str | None, extra: dict[str, Any]
) -> None:
    """Write checkpoint.pt whole or not at all. extra: what the method keeps outside the model's parameters and
    buffers."""
    content = {
        "weights": changing_weights(model),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "step": state.step,
        "tokens": state.tokens,
        "random": random_state(),
        "carried": dataclasses.asdict(carried),
        "mlflow_run_id": run_id,
        "extra": extra,
    }
    partial = folder / f"{CHECKPOINT_FILE}.partial"
    torch.save(content, partial)
    partial.replace(folder / CHECKPOINT_FILE)


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read checkpoint.pt without running any code that it may hold.

    Raises:
        DataError: the folder has none, or it is not readable.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        fix = "Only jobs with hparams.checkpoint_every above 0 can be resumed, after their first checkpoint."
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
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    _require_same_weights(content["weights"], own)
    with torch.no_grad():
        for name, tensor in content["weights"].items():
            own[name].copy_(tensor)
    state.optimizer.load_state_dict(content["optimizer"])
    state.scheduler.load_state_dict(content["scheduler"])
    state.step, state.tokens = content["step"], content["tokens"]
    restore_random_state(content["random"])


def _require_same_weights(stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    other = [name for name, tensor in stored.items() if name not in own or own[name].shape != tensor.shape]
    if other:
        rule = "a job resumes with the model and method of its checkpoint; these weights differ"
        raise DataError(Problem(rule, other[:3], "resume", "Resume with the settings of the interrupted job."))


def carried_from(content: dict[str, Any]) -> Carried:
    return Carried(**content["carried"])


def changing_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that training may change: all but the frozen weights of the base model."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if not isinstance(model, PeftModel):
        return {name: tensor.detach() for name, tensor in tensors.items()}
    return {
        name: tensor.detach() for name, tensor in tensors.items() if tensor.requires_grad or not _is_base_weight(name)
    }


def _is_base_weight(name: str) -> bool:
    """By peft's naming: wrapped layers keep theirs under base_layer; what was not wrapped ends in plain weight or
    bias."""
    return ".base_layer." in name or (name.rsplit(".", 1)[-1] in ("weight", "bias") and not _is_adapter_name(name))


def _is_adapter_name(name: str) -> bool:
    """peft names an adapter's own tensors after the adapter."""
    return ".default." in name or name.endswith(".default")
