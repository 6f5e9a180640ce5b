"""Methods that re-allocate their capacity between layers while training (AdaLoRA, AdaMSS)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from peftsweep.methods.hooks.interface import HookContext, MethodHook, active_config, is_language_model
from peftsweep.methods.targets import layers_named_by

# Where peft keeps moving averages that are neither parameters nor buffers.
ADALORA_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
ADAMSS_AVERAGES = ("exp_avg_ipt_A", "exp_avg_ipt_B", "exp_avg_unc_A", "exp_avg_unc_B")


@dataclass(frozen=True)
class RankAllocation(MethodHook):
    """Re-allocates capacity between layers while training (AdaLoRA, AdaMSS), on a schedule in shares of the run."""

    step_shares: dict[str, float] = field(default_factory=dict)  # argument -> share of all steps
    interval_shares: dict[str, float] = field(default_factory=dict)  # the same, but at least one step
    per_target: dict[str, float] = field(default_factory=dict)  # argument -> value per targeted layer

    def configure(self, arguments: dict[str, Any], context: HookContext) -> dict[str, Any]:
        steps = {key: round(share * context.total_steps) for key, share in self.step_shares.items()}
        intervals = {key: max(1, round(share * context.total_steps)) for key, share in self.interval_shares.items()}
        n_targets = len(layers_named_by(arguments, context.model))
        totals = {key: max(1, round(value * n_targets)) for key, value in self.per_target.items()}
        return steps | intervals | totals | arguments

    def own_loss(self, model: nn.Module) -> Tensor | None:
        if _rank_allocator(model) is None or is_language_model(model):  # there peft adds AdaLoRA's penalty by itself
            return None
        return non_orthogonality(model)

    def after_step(self, model: nn.Module, step: int) -> None:
        model.base_model.update_and_allocate(step)  # type: ignore[operator, union-attr]

    def state(self, model: nn.Module) -> dict[str, Any]:
        allocator = _rank_allocator(model)
        if allocator is not None:
            pattern = active_config(model).rank_pattern or {}
            return {name: dict(getattr(allocator, name)) for name in ADALORA_AVERAGES} | {"rank_pattern": pattern}
        averages = {
            path: {name: _known_averages(getattr(layer, name)) for name in ADAMSS_AVERAGES}
            for path, layer in _adamss_layers(model)
        }
        frozen = [name for name, weight in model.named_parameters() if "adamss_" in name and not weight.requires_grad]
        return {"averages": averages, "frozen": frozen}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> None:
        state = send_to_device(state, next(model.parameters()).device)
        allocator = _rank_allocator(model)
        if allocator is not None:
            for name in ADALORA_AVERAGES:
                setattr(allocator, name, state[name])
            active_config(model).rank_pattern = state["rank_pattern"] or None
            return
        for path, layer in _adamss_layers(model):
            for name, per_adapter in state["averages"][path].items():
                rows = getattr(layer, name)
                for adapter, known in per_adapter.items():
                    rows[adapter] = [known.get(i) for i in range(len(rows[adapter]))]
        for name, weight in model.named_parameters():
            if name in state["frozen"]:
                weight.requires_grad_(False)


def _rank_allocator(model: nn.Module) -> Any:
    return getattr(model.base_model, "rankallocator", None)


def non_orthogonality(model: nn.Module) -> Tensor:
    """AdaLoRA's penalty (eq. 4 of its paper): how far the singular vectors P and Q are from orthogonal ones.

    Weighted and averaged as peft does for language models.
    """
    distances = []
    for name, weight in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = weight @ weight.T if "lora_A" in name else weight.T @ weight
            distances.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
    penalty: Tensor = active_config(model).orth_reg_weight * torch.stack(distances).mean()
    return penalty


def _adamss_layers(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if hasattr(module, ADAMSS_AVERAGES[0])]


def _known_averages(rows: dict[str, list[Tensor | None]]) -> dict[str, dict[int, Tensor]]:
    """Adapter -> subspace -> moving average; subspaces without one yet are left out."""
    return {adapter: {i: x for i, x in enumerate(row) if x is not None} for adapter, row in rows.items()}
