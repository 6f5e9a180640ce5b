"""Which modules an adapter is put on: one table, architecture -> role -> module names.

Used when a method names a role (`targets: mlp`), and when the installed peft knows no default for the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from typing import Any

from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import PeftType, constants
from torch import nn

from peftsweep.errors import MethodError, Problem

Modules = list[str] | str  # names that end a module's path; or, as text, a regular expression for the whole path
Roles = dict[str, Modules]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]

# `default` is what a method takes that names no role: LoRA's classic choice, as peft falls back to for decoder models.
# `bias`: where a new bias vector does the work. `colwise`, `rowwise`: how servers split a layer over GPUs.
LLAMA_LIKE: Roles = {
    "attention": ATTENTION,
    "mlp": MLP,
    "linear": ATTENTION + MLP,
    "query_value": ["q_proj", "v_proj"],
    "value": ["v_proj"],
    "norm": ["input_layernorm", "post_attention_layernorm", "norm"],
    "default": ["q_proj", "v_proj"],
    "bias": ["v_proj"],
    "ia3": ["k_proj", "v_proj", "down_proj"],
    "ia3_feedforward": ["down_proj"],
    "colwise": ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"],
    "rowwise": ["o_proj", "down_proj"],
}

# FLUX.2's double-stream blocks have layers of their own for image (to_*) and prompt (add_*, to_add_out). A
# single-stream block makes queries, keys, values and the MLP's input in one layer, which so plays each of these roles.
FUSED = ["to_qkv_mlp_proj"]
FLUX_IN = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"]
FLUX_OUT = ["to_out.0", "to_add_out"]
FLUX_LINEAR = [*FLUX_IN, *FLUX_OUT, *FUSED, "linear_in", "linear_out"]
# Adds the output layer of the single-stream blocks, whose name alone is also that of a list in the double-stream ones.
FLUX_EVERY_LINEAR = rf".*\.({'|'.join(FLUX_LINEAR)})|single_transformer_blocks\.\d+\.attn\.to_out"

# `default`, `norm`, `bias` and `ia3` are what the PEFT library's image benchmark adapts.
FLUX2: Roles = {
    "attention": FLUX_IN + FLUX_OUT + FUSED,
    "mlp": ["linear_in", "linear_out", *FUSED],
    "linear": FLUX_LINEAR,
    "query_value": ["to_q", "to_v", "add_q_proj", "add_v_proj", *FUSED],
    "value": ["to_v", "add_v_proj", *FUSED],
    "norm": ["norm_q", "norm_k"],
    "default": FLUX_LINEAR,
    "bias": FLUX_EVERY_LINEAR,
    "ia3": FLUX_LINEAR,
    "ia3_feedforward": FLUX_LINEAR,  # these are rescaled at their input
    "colwise": [*FLUX_IN, *FUSED, "linear_in"],
    "rowwise": [*FLUX_OUT, "linear_out"],
}

# Encoders: one name, output.dense, stands for the end of attention and of the MLP alike.
BERT_LIKE: Roles = {
    "attention": ["query", "key", "value", "attention.output.dense"],
    "mlp": r".*\.layer\.\d+\.(intermediate|output)\.dense",
    "linear": ["query", "key", "value", "intermediate.dense", "output.dense"],
    "query_value": ["query", "value"],
    "value": ["value"],
    "norm": ["LayerNorm"],
    "default": ["query", "value"],
    "bias": ["value"],
    "ia3": ["key", "value", "output.dense"],
    "ia3_feedforward": ["output.dense"],
    "colwise": ["query", "key", "value", "intermediate.dense"],
    "rowwise": ["output.dense"],
}


def _renamed(roles: Roles, names: dict[str, str]) -> Roles:
    """The same roles where the modules are called otherwise."""
    return {
        role: modules if isinstance(modules, str) else list(dict.fromkeys(names.get(name, name) for name in modules))
        for role, modules in roles.items()
    }


DEBERTA = _renamed(BERT_LIKE, {"query": "query_proj", "key": "key_proj", "value": "value_proj"})
# Queries, keys and values are made in one layer, which so plays each of these roles.
MODERNBERT: Roles = _renamed(
    BERT_LIKE | {"mlp": ["mlp.Wi", "mlp.Wo"], "norm": ["attn_norm", "mlp_norm"]},
    {
        **dict.fromkeys(("query", "key", "value"), "Wqkv"),
        "attention.output.dense": "attn.Wo",
        "intermediate.dense": "Wi",
        "output.dense": "Wo",
    },
)


def _with_more(roles: Roles, more: dict[str, list[str]]) -> Roles:
    """The same roles with more modules; a role that is a regular expression stays as it is."""
    return {
        role: modules if isinstance(modules, str) else [*modules, *more.get(role, ())]
        for role, modules in roles.items()
    }


def _sees(connector: list[str], attention: list[str], mlp: list[str], norm: list[str]) -> Roles:
    """A Llama that is shown pictures: what joins both is adapted in every role of linear layers, once it may be."""
    joined = dict.fromkeys(("attention", "mlp", "linear", "query_value", "default", "ia3"), connector)
    return _with_more(
        LLAMA_LIKE,
        joined
        | {
            "attention": [*attention, *connector],
            "mlp": [*mlp, *connector],
            "linear": [*attention, *mlp, *connector],
            "norm": norm,
        },
    )


IDEFICS3 = _sees(["modality_projection.proj"], ["out_proj"], ["fc1", "fc2"], ["layer_norm1", "layer_norm2"])
QWEN_VL = _sees(["merger.mlp.0", "merger.mlp.2"], ["attn.qkv", "attn.proj"], [], ["norm1", "norm2"])
# Where the parts of a vision-language model lie: which of them may change is the user's choice, the vision tower is not
# among them unless it is asked for, and names such as q_proj are met in all of them.
EVERY_PART = "all"
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "idefics3": {"language": ("model.text_model", "lm_head"), "connector": ("model.connector",)},
    "qwen2_5_vl": {"language": ("model.language_model", "lm_head"), "connector": ("model.visual.merger",)},
}
PARTS |= {"smolvlm": PARTS["idefics3"], "qwen2_vl": PARTS["qwen2_5_vl"]}

# Keys are `config.model_type` for transformers and the class name for diffusers models.
LLAMAS = ["llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "granite"]
BERTS = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "esm"]
TARGETS: dict[str, Roles] = (
    dict.fromkeys(LLAMAS, LLAMA_LIKE)
    | dict.fromkeys(BERTS, BERT_LIKE)
    | dict.fromkeys(("idefics3", "smolvlm"), IDEFICS3)
    | dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), QWEN_VL)
    | {"deberta-v2": DEBERTA, "modernbert": MODERNBERT, "Flux2Transformer2DModel": FLUX2}
)

# Types whose default is not LoRA's: what the method rescales or retrains is a different kind of module.
DEFAULT_ROLES = {PeftType.LN_TUNING: "norm", PeftType.OSF: "linear", PeftType.BEFT: "bias"}


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
        return arguments | {"target_modules": modules_of_role(role, architecture)}
    return _choice_of_peft(peft_type, architecture) | arguments


def parts_of(model: nn.Module, adapt: str) -> tuple[str, ...]:
    """Paths of the modules that `adapt` names: parts of PARTS, joined by +; none for all of the model. Raises
    MethodError for a model whose parts are unknown."""
    if adapt == EVERY_PART:
        return ()
    architecture = architecture_of(model)
    if architecture not in PARTS:
        rule = f"peftsweep doesn't know where {adapt} lies in this architecture"
        fix = "Adapt all of it: model.adapt=all; or name modules: '+method.peft.target_modules=[...]'."
        raise MethodError(Problem(rule, architecture, f"model.adapt={adapt}", fix))
    return tuple(path for part in adapt.split("+") for path in PARTS[architecture][part])


def within_parts(targets: Modules, parts: Sequence[str], model: nn.Module) -> Modules:
    """The same targets, those that lie elsewhere left out. parts: paths of modules; none: all of the model."""
    if not parts:
        return targets
    inside = "|".join(map(re.escape, parts))
    if targets == "all-linear":
        linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
        heads = [name for name, module in model.named_modules() if module is _head_of(model)]
        return [name for name in linear if re.match(rf"(?:{inside})\.", name) and name not in heads]
    if isinstance(targets, str):
        return rf"(?=(?:{inside})\.)(?:{targets})"
    return rf"(?:{inside})\.(?:.*\.)?(?:{'|'.join(map(re.escape, targets))})"


def _head_of(model: Any) -> nn.Module | None:
    found: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
    return found


def modules_of_role(role: str, architecture: str) -> Modules:
    """The row's entry, to be given to peft. Raises MethodError if the architecture or its role is unknown."""
    roles = _roles_of(architecture, f"method.targets={role}")
    if role not in roles:
        rule = f"targets must be one of {', '.join(roles)} for {architecture}"
        raise MethodError(Problem(rule, role, "method.targets"))
    return copy(roles[role])  # peft keeps, and may change, the list that it is given


def _roles_of(architecture: str, source: str) -> Roles:
    if architecture not in TARGETS:
        rule = "neither peft nor peftsweep knows which modules of this architecture to adapt"
        fix = "Name them: '+method.peft.target_modules=[q_proj,v_proj]' (or all-linear)."
        raise MethodError(Problem(rule, architecture, source, fix))
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
    return {"target_modules": copy(roles[DEFAULT_ROLES.get(peft_type, "default")])}


def _ia3_targets(architecture: str) -> dict[str, Any]:
    if architecture in constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        targets: Modules = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[architecture]
        feedforward: Modules = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[architecture]
    else:
        roles = _roles_of(architecture, "method.peft.target_modules")
        targets, feedforward = roles["ia3"], roles["ia3_feedforward"]
    return {"target_modules": copy(targets), "feedforward_modules": copy(feedforward)}


def targeted_layers(config: Any, model: nn.Module) -> dict[str, tuple[int, int]]:
    """The layers with two sides that a PEFT config names, each with its input and output features.

    None where it names modules in another way, or not yet.
    """
    targets = getattr(config, "target_modules", None)
    found = {}
    for name, module in model.named_modules() if targets else ():
        sides = (getattr(module, "in_features", None), getattr(module, "out_features", None))
        is_named = targets == "all-linear" or check_target_module_exists(config, name)
        if isinstance(sides[0], int) and isinstance(sides[1], int) and is_named:
            found[name] = (sides[0], sides[1])
    return found


def layers_named_by(arguments: dict[str, Any], model: nn.Module) -> dict[str, tuple[int, int]]:
    """The same before there is a config, from its arguments: all PEFT methods read these two as LoRA does."""
    targets, excluded = arguments.get("target_modules"), arguments.get("exclude_modules")
    return targeted_layers(LoraConfig(target_modules=targets, exclude_modules=excluded), model)
