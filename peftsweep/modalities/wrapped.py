"""A model inside the wrappers of torch.compile and PEFT; in eval mode, or on a device, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn


def uncompiled(model: nn.Module) -> nn.Module:
    """What torch.compile was given, or the model itself. `_orig_mod` is private, and the only way in."""
    return getattr(model, "_orig_mod", model)


def base_of(model: nn.Module) -> Any:
    """The transformers or diffusers model in the middle, which owns the configuration and the output head."""
    model = uncompiled(model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def on_device_of(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch where the model is, without waiting for it to arrive."""
    device = next(model.parameters()).device
    return {key: tensor.to(device, non_blocking=True) for key, tensor in batch.items()}


def repeated_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Of each list of modules of one class the members, and nothing within them; of one that a method has put itself
    around, what is inside."""
    for child in model.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1 and len({type(block) for block in child}) == 1:
            yield from (getattr(block, "base_layer", block) for block in child)
        else:
            yield from repeated_blocks(child)


def divisible_blocks(model: nn.Module) -> list[nn.Module]:
    """What several devices may hold in parts, whatever wraps the model: the blocks that every pass goes through, in its
    order. What makes tokens of pictures is asked at times of its own, and stays whole."""
    base: Any = base_of(model)
    decoder = getattr(base, "get_decoder", lambda: base)()
    return list(repeated_blocks(decoder))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode for as long as it lasts, then each as it was."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


@contextmanager
def compiled_blocks_idle(model: nn.Module) -> Iterator[None]:
    """Blocks that were compiled in place run as they are written: in decoding they would be compiled anew for each
    length of the cache."""
    calls = {module: module._compiled_call_impl for module in model.modules() if module._compiled_call_impl}
    for module in calls:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in calls.items():
            module._compiled_call_impl = call


@contextmanager
def visiting(model: nn.Module, device: torch.device) -> Iterator[Any]:
    """A model on `device` for as long as it lasts, on the host before and after."""
    model.to(device)
    try:
        yield model
    finally:
        model.to("cpu")
