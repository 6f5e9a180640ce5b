"""The table of hooks: name in a method's YAML -> class."""

from __future__ import annotations

import inspect

from peftsweep.config.schema import HookConfig
from peftsweep.errors import MethodError, Problem, did_you_mean
from peftsweep.methods.hooks.calibration import Corda, Eva, LoftQ, LoraGA, VeLora
from peftsweep.methods.hooks.interface import MethodHook
from peftsweep.methods.hooks.model_dependent import CommonDivisor, LayerShares, ModuleRoles, NormsInFloat32, ShadowHeads
from peftsweep.methods.hooks.optimization import AddsLoss, LoraFA, LoraPlus, LoraRiemannian, MonteClora
from peftsweep.methods.hooks.rank_allocation import RankAllocation
from peftsweep.methods.hooks.training_tokens import ContextTokens, FrequentTokens, TextPrefix

HOOKS: dict[str, type[MethodHook]] = {
    "none": MethodHook,
    "layer_shares": LayerShares,
    "common_divisor": CommonDivisor,
    "module_roles": ModuleRoles,
    "shadow_heads": ShadowHeads,
    "norms_in_float32": NormsInFloat32,
    "rank_allocation": RankAllocation,
    "lora_fa": LoraFA,
    "lora_plus": LoraPlus,
    "lora_riemannian": LoraRiemannian,
    "eva": Eva,
    "corda": Corda,
    "lora_ga": LoraGA,
    "adds_loss": AddsLoss,
    "monteclora": MonteClora,
    "velora": VeLora,
    "loftq": LoftQ,
    "text_prefix": TextPrefix,
    "frequent_tokens": FrequentTokens,
    "context_tokens": ContextTokens,
}


def build_hook(config: HookConfig | None) -> MethodHook:
    """Look the hook up and build it from its kwargs. Raises MethodError on an unknown name or argument."""
    if config is None:
        return MethodHook()
    if config.name not in HOOKS:
        fix = did_you_mean(config.name, list(HOOKS))
        raise MethodError(Problem("no hook has this name", config.name, "method.hook.name", fix))
    hook_class = HOOKS[config.name]
    known = [name for name in inspect.signature(hook_class).parameters if not name.startswith("_")]
    unknown = sorted(set(config.kwargs) - set(known))
    if unknown:
        rule = f"hook {config.name} takes {known or 'no arguments'}"
        raise MethodError(Problem(rule, unknown[0], "method.hook.kwargs"))
    return hook_class(**config.kwargs)
