"""Which modules an adapter is put on: one table, architecture -> role -> module names.

Used when a method names a role (`targets: mlp`), and when the installed peft knows no default for the architecture.
"""

from __future__ import annotations

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, constants

from peftsweep.errors import MethodError, Problem

Roles = dict[str, list[str]]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]

# `query_value` is LoRA's classic choice and what peft itself falls back to for decoder models.
LLAMA_LIKE: Roles = {
    "attention": ATTENTION,
    "mlp": MLP,
    "linear": ATTENTION + MLP,
    "query_value": ["q_proj", "v_proj"],
    "value": ["v_proj"],
    "norm": ["input_layernorm", "post_attention_layernorm", "norm"],
    "ia3": ["k_proj", "v_proj", "down_proj"],
    "ia3_feedforward": ["down_proj"],
}

# Keys are `config.model_type` for transformers and the class name for diffusers models.
TARGETS: dict[str, Roles] = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "smollm3": LLAMA_LIKE,
    "gemma": LLAMA_LIKE,
    "gemma2": LLAMA_LIKE,
    "gemma3_text": LLAMA_LIKE,
    "olmo": LLAMA_LIKE,
    "olmo2": LLAMA_LIKE,
    "granite": LLAMA_LIKE,
}

# Types whose fallback is not LoRA's: what the method rescales or retrains is a different kind of module.
FALLBACK_ROLES = {PeftType.LN_TUNING: "norm", PeftType.OSF: "linear", PeftType.BEFT: "value"}


def architecture_of(model: Any) -> str:
    """Name under which TARGETS and peft's own tables list a model; its class name where it has no `model_type`."""
    config = getattr(model, "config", None)
    if isinstance(config, dict):  # diffusers: a FrozenDict
        return str(config.get("_class_name", type(model).__name__))
    return str(getattr(config, "model_type", type(model).__name__))


def with_targets(peft_type: PeftType, arguments: dict[str, Any], role: str | None, architecture: str) -> dict[str, Any]:
    """Return the PEFT arguments with `target_modules` named, where the method has that argument and it is still open.

    Raises MethodError if the role, or any choice for this architecture, is unknown.
    """
    fields = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type].__dataclass_fields__
    named = arguments.get("target_modules") or arguments.get("target_parameters")
    if "target_modules" not in fields or named or peft_type is PeftType.ADAPTION_PROMPT:
        return arguments
    if role is not None:
        return arguments | {"target_modules": list(_modules_of_role(role, architecture))}
    return _choice_of_peft(peft_type, architecture) | arguments


def _modules_of_role(role: str, architecture: str) -> list[str]:
    roles = _roles_of(architecture, f"method.targets={role}")
    if role not in roles:
        raise MethodError(
            Problem(f"targets must be one of {', '.join(roles)} for {architecture}", role, "method.targets")
        )
    return roles[role]


def _roles_of(architecture: str, source: str) -> Roles:
    if architecture not in TARGETS:
        raise MethodError(
            Problem(
                "neither peft nor peftsweep knows which modules of this architecture to adapt",
                architecture,
                source,
                "Name them: '+method.peft.target_modules=[q_proj,v_proj]' (or all-linear).",
            )
        )
    return TARGETS[architecture]


def _choice_of_peft(peft_type: PeftType, architecture: str) -> dict[str, Any]:
    """peft's default targets, spelled out because checks and calibration need them before injection; else ours."""
    if peft_type is PeftType.IA3:
        return _ia3_targets(architecture)
    mapping = getattr(PEFT_TYPE_TO_TUNER_MAPPING.get(peft_type), "target_module_mapping", None)
    if not mapping:  # trainable tokens take the input embedding, SHADOW the decoder layers, by themselves
        return {}
    if architecture in mapping:
        return {"target_modules": mapping[architecture]}
    roles = _roles_of(architecture, "method.peft.target_modules")
    return {"target_modules": list(roles[FALLBACK_ROLES.get(peft_type, "query_value")])}


def _ia3_targets(architecture: str) -> dict[str, Any]:
    if architecture in constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        targets = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[architecture]
        feedforward = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[architecture]
    else:
        roles = _roles_of(architecture, "method.peft.target_modules")
        targets, feedforward = roles["ia3"], roles["ia3_feedforward"]
    return {"target_modules": list(targets), "feedforward_modules": list(feedforward)}
