"""Read an experiment folder in the format of the PEFT library's own benchmark: `method=from_file method.path=<folder>`.

Such a folder holds adapter_config.json (none: full fine-tuning) and, optionally, training_params.json with what differs
from the benchmark's defaults. Example of the latter: {"optimizer_kwargs": {"lr": 3e-4}, "lr_scheduler": null}
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftsweep.config.schema import HookConfig, JobConfig, MethodConfig
from peftsweep.errors import MethodError, Problem

ADAPTER_FILE = "adapter_config.json"
TRAINING_FILE = "training_params.json"

# Where an adapter came from, what model it was for: said by the run itself here.
PROVENANCE = {
    "peft_type",
    "task_type",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
}

# Sizes of the base model, which peft reads from the model when nobody names them.
BASE_MODEL_SIZES = {"token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules"}

# Key of training_params.json -> key of HparamsConfig.
HPARAMS = {
    "max_steps": "max_steps",
    "batch_size": "batch_size",
    "batch_size_eval": "eval_batch_size",
    "eval_steps": "eval_every",
    "max_seq_length": "max_seq_length",
    "grad_norm_clip": "max_grad_norm",
    "use_gc": "gradient_checkpointing",
    "use_amp": "amp",
    "compile": "compile",
    "autocast_adapter_dtype": "adapter_float32",
}

# Keys that choose the model, the task or the prefix: not this file's to set, or handled apart.
NOT_HPARAMS = {
    "model_id",
    "dtype",
    "seed",
    "attn_implementation",
    "query_template",
    "generation_kwargs",
    "init_kv_cache_prefix",
    "optimizer_type",
    "optimizer_kwargs",
    "lr_scheduler",
    # of image generation
    "dataset_id",
    "dataset_split",
    "image_column",
    "instance_prompts",
    "sample_image_prompts",
    "drift_image_prompts",
    "resolution",
    "repeats",
    "valid_size",
    "test_size",
    "max_sequence_length",
    "text_encoder_out_layers",
    "num_inference_steps",
    "guidance_scale",
    "weighting_scheme",
    "logit_mean",
    "logit_std",
    "mode_scale",
    "dino_model_id",
    "dino_image_size",
}

# Benchmark's optimizer_type -> hook, and optimizer_kwargs -> the hook's own. None: taken from the adapter instead.
OPTIMIZER_HOOKS: dict[str, tuple[str, dict[str, str | None]]] = {
    "lora-fa": ("lora_fa", {"r": None, "lora_alpha": None, "use_rslora": None}),
    "lora+": ("lora_plus", {"loraplus_lr_ratio": "lr_ratio"}),
    "riemannian": ("lora_riemannian", {"reg": "reg"}),
}

# LoRA argument -> hook that its value needs.
LORA_HOOKS = {
    "velora_config": HookConfig("velora"),
    "kasa_config": HookConfig("adds_loss", {"term": "_get_kasa_loss"}),
    "monteclora_config": HookConfig("monteclora", {"term": "_get_monteclora_loss"}),
}
INIT_HOOKS = {name: HookConfig(name) for name in ("eva", "corda", "lora_ga", "loftq")}


def follow_experiment(config: JobConfig, typed: Collection[str]) -> JobConfig:
    """The same job with the method and hyper-parameters of the folder `config.method.path`.

    typed: keys of the command line, which keep the values given there. Raises MethodError, see below.
    """
    folder = Path(str(config.method.path))
    method = replace(read_method(folder), modalities=config.method.modalities)
    found = {"lr": method.lr} | read_hparams(folder)
    changed = {key: value for key, value in found.items() if f"hparams.{key}" not in typed}
    return replace(config, method=method, hparams=replace(config.hparams, **changed))


def read_method(folder: Path) -> MethodConfig:
    """Read the method of an experiment folder, with the hook that its adapter or optimizer needs.

    Keys that the installed peft doesn't know are dropped if they are empty, off, or say where the adapter came from.
    Raises MethodError for a missing or broken file, a type or a set key that the installed peft doesn't know, and an
    experiment that needs two hooks.
    """
    training = _read_json(folder / TRAINING_FILE) or {}
    raw = _read_json(folder / ADAPTER_FILE)
    name = f"{folder.parent.name}--{folder.name}"
    lr = float(training.get("optimizer_kwargs", {}).get("lr", 1e-4))
    if raw is None and training:
        return MethodConfig(name=name, lr=lr, path=str(folder))
    if raw is None:
        raise MethodError(Problem(f"an experiment folder must hold {ADAPTER_FILE}", str(folder), "method.path"))
    arguments = _known_arguments(raw, folder / ADAPTER_FILE)
    hook = _only_hook([_optimizer_hook(training, folder), _text_hook(training), _adapter_hook(raw, arguments)], folder)
    return MethodConfig(name=name, peft_type=raw["peft_type"], lr=lr, peft=arguments, hook=hook, path=str(folder))


def read_hparams(folder: Path) -> dict[str, Any]:
    """Read what an experiment folder sets of HparamsConfig; empty without training_params.json. Needs no torch.

    Raises MethodError for a broken file or a key that is none of the benchmark's.
    """
    source = folder / TRAINING_FILE
    training = _read_json(source) or {}
    unknown = sorted(set(training) - set(HPARAMS) - NOT_HPARAMS)
    if unknown:
        known = ", ".join(sorted([*HPARAMS, *NOT_HPARAMS]))
        raise MethodError(
            Problem("the file may set only the benchmark's keys", unknown[0], str(source), f"Known: {known}.")
        )
    hparams = {HPARAMS[key]: value for key, value in training.items() if key in HPARAMS}
    if "lr_scheduler" in training:
        hparams["scheduler"] = training["lr_scheduler"] or "constant"
    return hparams | _optimizer_hparams(training)


def _optimizer_hparams(training: dict[str, Any]) -> dict[str, Any]:
    kind = training.get("optimizer_type", "AdamW")
    hparams: dict[str, Any] = {} if kind in OPTIMIZER_HOOKS or "optimizer_type" not in training else {"optimizer": kind}
    own = OPTIMIZER_HOOKS.get(kind, ("", {}))[1]
    kwargs = {key: value for key, value in training.get("optimizer_kwargs", {}).items() if key not in own}
    hparams |= {key: float(kwargs.pop(key)) for key in ("lr", "weight_decay") if key in kwargs}
    return hparams | ({"optimizer_kwargs": kwargs} if kwargs else {})


def _known_arguments(raw: dict[str, Any], source: Path) -> dict[str, Any]:
    # Late, so that reading hparams doesn't wait for torch.
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from peftsweep.methods.attach import check_argument_names, parse_peft_type

    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[parse_peft_type(raw.get("peft_type"), str(source))]
    known = config_class.__dataclass_fields__
    kept = {key: value for key, value in raw.items() if key not in PROVENANCE | BASE_MODEL_SIZES and value is not None}
    arguments = {key: value for key, value in kept.items() if key in known or value not in (False, {}, [], "")}
    check_argument_names(arguments, config_class, str(source))
    return arguments


def _adapter_hook(raw: dict[str, Any], arguments: dict[str, Any]) -> HookConfig | None:
    if raw["peft_type"] == "ADALORA":
        return _schedule_hook(arguments)
    if raw["peft_type"] == "LN_TUNING":
        return HookConfig("norms_in_float32")
    if raw["peft_type"] == "ADAMSS" and raw.get("use_asa"):
        return HookConfig("rank_allocation")
    found = [hook for key, hook in LORA_HOOKS.items() if arguments.get(key)]
    return found[0] if found else INIT_HOOKS.get(str(arguments.get("init_lora_weights")))


def _schedule_hook(arguments: dict[str, Any]) -> HookConfig:
    """AdaLoRA's schedule as shares of the steps that it was written for, so that it fits a run of any length."""
    total = arguments.pop("total_step", None) or 1
    shares = {key: arguments.pop(key, 0) / total for key in ("tinit", "tfinal")}
    return HookConfig("rank_allocation", {"step_shares": shares | {"total_step": 1.0}})


def _optimizer_hook(training: dict[str, Any], folder: Path) -> HookConfig | None:
    kind = training.get("optimizer_type")
    if kind not in OPTIMIZER_HOOKS:
        return None
    name, renamed = OPTIMIZER_HOOKS[kind]
    given = training.get("optimizer_kwargs", {})
    return HookConfig(name, {new: given[old] for old, new in renamed.items() if new and old in given})


def _text_hook(training: dict[str, Any]) -> HookConfig | None:
    text = training.get("init_kv_cache_prefix")
    return HookConfig("text_prefix", {"text": text}) if text else None


def _only_hook(hooks: list[HookConfig | None], folder: Path) -> HookConfig | None:
    found = [hook for hook in hooks if hook is not None]
    if len(found) > 1:
        names = " and ".join(hook.name for hook in found)
        raise MethodError(Problem("an experiment may need one hook only", names, str(folder)))
    return found[0] if found else None


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MethodError(Problem(f"the file must be readable JSON ({error})", source=str(path))) from error
    if not isinstance(content, dict):
        raise MethodError(Problem("the file must hold a JSON object", type(content).__name__, str(path)))
    return content
