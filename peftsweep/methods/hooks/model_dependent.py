"""What depends on the model: arguments and dtypes, so that one YAML fits all."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from peft import PeftModel
from peft.tuners.ln_tuning.layer import LNTuningLayer
from torch import Tensor, nn

from peftsweep.methods.hooks.interface import HookContext, MethodHook
from peftsweep.methods.targets import architecture_of, layers_named_by, modules_of_role


@dataclass(frozen=True)
class LayerShares(MethodHook):
    """Arguments counted in layers, given as shares, so that one YAML fits models of any depth."""

    shares: dict[str, float] = field(default_factory=dict)  # argument -> share of the model's layers, at least 1 layer

    def configure(self, arguments: dict[str, Any], context: HookContext) -> dict[str, Any]:
        layers = {key: max(1, round(share * context.num_layers)) for key, share in self.shares.items()}
        return layers | arguments


@dataclass(frozen=True)
class CommonDivisor(MethodHook):
    """An argument that must divide both sizes of all targeted layers: the largest such number up to a bound."""

    argument: str = ""
    most: int = 1

    def configure(self, arguments: dict[str, Any], context: HookContext) -> dict[str, Any]:
        layers = layers_named_by(arguments, context.model)
        common = math.gcd(*(side for sides in layers.values() for side in sides))
        return {self.argument: max(n for n in range(1, self.most + 1) if common % n == 0)} | arguments


@dataclass(frozen=True)
class ModuleRoles(MethodHook):
    """Arguments within another that list modules, given as roles of methods/targets.py."""

    argument: str = ""
    roles: dict[str, str] = field(default_factory=dict)  # key of the argument's value -> role

    def configure(self, arguments: dict[str, Any], context: HookContext) -> dict[str, Any]:
        architecture = architecture_of(context.model)
        given = dict(arguments.get(self.argument) or {})
        named = {key: modules_of_role(role, architecture) for key, role in self.roles.items() if key not in given}
        return arguments | {self.argument: given | named}


@dataclass(frozen=True)
class ShadowHeads(MethodHook):
    """Gives a diffusion transformer's shadow as many heads as make up its width, each as wide as the base's."""

    def configure(self, arguments: dict[str, Any], context: HookContext) -> dict[str, Any]:
        head_width = getattr(getattr(context.model, "config", None), "attention_head_dim", None)
        if head_width is None:
            return arguments
        heads = max(1, arguments["shadow_hidden_size"] // head_width)
        return arguments | {"shadow_hidden_size": heads * head_width, "shadow_num_attention_heads": heads}


@dataclass(frozen=True)
class NormsInFloat32(MethodHook):
    """Trains norms in float32 beside a 16-bit base, as peft does with all adapters but copies of base layers.

    Scales stand near 1, where bfloat16 has steps of 0.004 to 0.008: at a learning rate of 1e-4 none would ever move.
    """

    def calibrate(self, model: PeftModel, context: HookContext) -> None:
        for layer in model.modules() if context.adapter_float32 else ():
            if isinstance(layer, LNTuningLayer):
                layer.ln_tuning_layers.float()
                layer.register_forward_hook(_in_dtype_of_input)


def _in_dtype_of_input(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.to(inputs[0].dtype)
