"""Checkpoints to resume from: everything that changes while training, so that a resumed job repeats the same bits on a
CPU."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer

from peftsweep.errors import DataError, Problem
from peftsweep.job.loop import TrainingState
from peftsweep.memory.probe import Carried
from peftsweep.ranks import world
from peftsweep.ranks.sharding import laid_out_like, load_shards, save_shards, trains_shards
from peftsweep.records.files import CHECKPOINT_FILE, SHARDS_FOLDER, writing_whole

STATE = ("step", "tokens", "skipped_steps", "owes_validation")
KEPT = {"weights", "optimizer", "shards", "scheduler", "scaler", "random", "carried", "mlflow_run_id", "extra"}


def save_checkpoint(
    folder: Path, model: nn.Module, state: TrainingState, carried: Carried, run_id: str | None, extra: dict[str, Any]
) -> None:
    """Write checkpoint.pt whole or not at all. extra: what the method keeps outside the model's parameters and
    buffers. Of weights that are trained in parts on several ranks all must ask, and a folder beside it has them."""
    shards = SHARDS_FOLDER.format(step=state.step) if trains_shards(model) else None
    if shards:
        save_shards(folder / shards, model, state.optimizer)
    if world.rank() > 0:
        return
    content = {
        "weights": {} if shards else changing_weights(model),
        "optimizer": {} if shards else state.optimizer.state_dict(),
        "shards": shards,
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
    _forget_shards(folder, but=shards)


def forget_checkpoint(folder: Path) -> None:
    """Of a job that is complete."""
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    _forget_shards(folder, but=None)


def _forget_shards(folder: Path, *, but: str | None) -> None:
    for other in folder.glob(SHARDS_FOLDER.format(step="*")):
        if other.name != but:
            shutil.rmtree(other, ignore_errors=True)


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
    if not isinstance(content, dict) or {"shards": None, **content}.keys() != KEPT | set(STATE):
        raise DataError(Problem("the checkpoint must be one of this version of peftsweep", str(path), "resume"))
    return content


def restore_checkpoint(folder: Path, content: dict[str, Any], model: nn.Module, state: TrainingState) -> None:
    """Put a checkpoint, which was loaded from that folder, into a model and an optimizer that were built as for a new
    job, on as many ranks as there are now.

    Raises:
        DataError: it is of another model or method.
    """
    own, stored = _tensors(model), content["weights"]
    if other := [name for name, tensor in stored.items() if name not in own or own[name].shape != tensor.shape]:
        rule = "a job resumes with the model and method of its checkpoint; these weights differ"
        raise DataError(Problem(rule, other[:3], "resume", "Resume with the settings of the interrupted job."))
    for name, tensor in stored.items():
        own[name].detach().copy_(laid_out_like(own[name], tensor))
    if content.get("shards"):
        load_shards(folder / content["shards"], model, state.optimizer)
    else:
        state.optimizer.load_state_dict(_laid_out(content["optimizer"], state.optimizer))
    state.scheduler.load_state_dict(content["scheduler"])
    if content["scaler"]:
        state.scaler.load_state_dict(content["scaler"])
    for name in STATE:
        setattr(state, name, content[name])
    if world.rank() == 0:  # what another one draws follows from its number and the step
        restore_random_state(content["random"])


def _laid_out(stored: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """What an optimizer keeps of each weight, in parts where the weight is."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept = {
        number: {
            name: laid_out_like(weights[number], value)
            if isinstance(value, Tensor) and value.shape == weights[number].shape
            else value
            for name, value in of_weight.items()
        }
        for number, of_weight in stored["state"].items()
    }
    return {**stored, "state": kept}


def changing_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that training may change: all but the frozen weights of the base model."""
    return {
        name: tensor.detach()
        for name, tensor in _tensors(model).items()
        if not isinstance(model, PeftModel) or tensor.requires_grad or not _is_base_weight(name)
    }


def kept_whole(model: nn.Module) -> list[nn.Parameter]:
    """What every rank has all of, where several hold a model in parts: an adapter's weights. A model that is trained
    itself has none of its own."""
    own = changing_weights(model) if isinstance(model, PeftModel) else {}
    return [weight for name, weight in model.named_parameters() if name in own]


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
