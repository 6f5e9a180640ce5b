"""Experiment folders in the format of the PEFT library's own benchmark, read and written.

Such a folder holds adapter_config.json (none: full fine-tuning) and, optionally, training_params.json with what differs
from the benchmark's defaults. Example of the latter: {"optimizer_kwargs": {"lr": 3e-4}, "lr_scheduler": null}
`method=from_file method.path=<folder>` reads one as a method.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftsweep.config.schema import HookConfig, JobConfig, MethodConfig
from peftsweep.errors import DataError, MethodError, Problem
from peftsweep.exchange import benchmark
from peftsweep.exchange.benchmark import OwnOptimizer, find, put_settings, read_json, take_settings
from peftsweep.records.files import ADAPTER_FOLDER
from peftsweep.records.results import JobResult

# Sizes of the base model, which peft reads from the model when nobody names them.
BASE_MODEL_SIZES = {"token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules"}
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
    training = read_json(folder / benchmark.TRAINING_FILE, MethodError) or {}
    raw = read_json(folder / benchmark.ADAPTER_FILE, MethodError)
    name = f"{folder.parent.name}--{folder.name}"
    lr = float(training.get("optimizer_kwargs", {}).get("lr", 1e-4))
    if raw is None and training:
        return MethodConfig(name=name, lr=lr, path=str(folder))
    if raw is None:
        raise MethodError(
            Problem(f"an experiment folder must hold {benchmark.ADAPTER_FILE}", str(folder), "method.path")
        )
    arguments = _known_arguments(raw, folder / benchmark.ADAPTER_FILE)
    hooks = [*_training_hooks(training), *_adapter_hooks(raw, arguments)]
    if len(hooks) > 1:
        names = " and ".join(hook.name for hook in hooks)
        raise MethodError(Problem("an experiment may need one hook only", names, str(folder)))
    hook = hooks[0] if hooks else None
    return MethodConfig(name=name, peft_type=raw["peft_type"], lr=lr, peft=arguments, hook=hook, path=str(folder))


def _known_arguments(raw: dict[str, Any], source: Path) -> dict[str, Any]:
    # Late, so that reading hparams doesn't wait for torch.
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from peftsweep.methods.attach import check_argument_names, parse_peft_type

    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[parse_peft_type(raw.get("peft_type"), str(source))]
    known = config_class.__dataclass_fields__
    left_out = benchmark.PROVENANCE | BASE_MODEL_SIZES
    kept = {key: value for key, value in raw.items() if key not in left_out and value is not None}
    arguments = {key: value for key, value in kept.items() if key in known or value not in (False, {}, [], "")}
    check_argument_names(arguments, config_class, str(source))
    return arguments


def _training_hooks(training: dict[str, Any]) -> list[HookConfig]:
    hooks = []
    own = _own_optimizer(training)
    if own is not None:
        given = training.get("optimizer_kwargs", {})
        kwargs = {ours: given[theirs] for theirs, ours in own.arguments.items() if theirs in given}
        hooks.append(HookConfig(own.hook, kwargs))
    if text := training.get("init_kv_cache_prefix"):
        hooks.append(HookConfig("text_prefix", {"text": text}))
    return hooks


def _own_optimizer(training: dict[str, Any]) -> OwnOptimizer | None:
    return next((row for row in benchmark.OPTIMIZERS if row.optimizer_type == training.get("optimizer_type")), None)


def _adapter_hooks(raw: dict[str, Any], arguments: dict[str, Any]) -> list[HookConfig]:
    if raw["peft_type"] == "ADALORA":
        # Its schedule as shares of the steps that it was written for, so that it fits a run of any length.
        total = arguments.pop("total_step", None) or 1
        shares = {key: arguments.pop(key, 0) / total for key in ("tinit", "tfinal")}
        return [HookConfig("rank_allocation", {"step_shares": shares | {"total_step": 1.0}})]
    if raw["peft_type"] == "LN_TUNING":
        return [HookConfig("norms_in_float32")]
    if raw["peft_type"] == "ADAMSS" and raw.get("use_asa"):
        return [HookConfig("rank_allocation")]
    found = [hook for key, hook in LORA_HOOKS.items() if arguments.get(key)]
    found += [INIT_HOOKS[name] for name in [str(arguments.get("init_lora_weights"))] if name in INIT_HOOKS]
    return found[:1]


def read_hparams(folder: Path) -> dict[str, Any]:
    """Read what an experiment folder sets of HparamsConfig; empty without training_params.json. Needs no torch.

    Raises MethodError for a broken file or a key that is none of the benchmark's.
    """
    source = folder / benchmark.TRAINING_FILE
    training = read_json(source, MethodError) or {}
    unknown = sorted(set(training) - benchmark.KNOWN_KEYS)
    if unknown:
        fix = f"Known: {', '.join(sorted(benchmark.KNOWN_KEYS))}."
        raise MethodError(Problem("the file may set only the benchmark's keys", unknown[0], str(source), fix))
    config: dict[str, Any] = {"hparams": {}}
    take_settings(config, training, [setting for setting in benchmark.SETTINGS if setting.ours.startswith("hparams.")])
    hparams: dict[str, Any] = config["hparams"]
    own = _own_optimizer(training)
    if own is not None:
        del hparams["optimizer"]
    kwargs = other_optimizer_kwargs(training, own)
    return hparams | ({"optimizer_kwargs": kwargs} if kwargs else {})


def other_optimizer_kwargs(training: Mapping[str, Any], own: OwnOptimizer | None = None) -> dict[str, Any]:
    """Arguments of the optimizer that are neither settings of their own here nor a hook's."""
    apart = {"lr", "weight_decay", *((*own.arguments, *own.of_adapter) if own else ())}
    return {key: value for key, value in training.get("optimizer_kwargs", {}).items() if key not in apart}


def training_params(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that an experiment sets of how to train: content of training_params.json."""
    params: dict[str, Any] = {}
    put_settings(params, config, benchmark.TRAINING)
    kwargs = params.setdefault("optimizer_kwargs", {})
    kwargs |= find(config, "hparams.optimizer_kwargs") or {}
    hook = find(config, "method.hook") or {}
    own = next((row for row in benchmark.OPTIMIZERS if row.hook == hook.get("name")), None)
    if own is not None:
        params["optimizer_type"] = own.optimizer_type
        given = hook.get("kwargs") or {}
        kwargs |= {theirs: given[ours] for theirs, ours in own.arguments.items() if ours in given}
        asked = find(config, "method.peft") or {}
        kwargs |= {key: asked[key] for key in own.of_adapter if key in asked}
    return params


def experiment_name(result: JobResult) -> str:
    """<method>/<model and what was chosen>; of a job that came from there, its own name."""
    if "experiment" in result.config:
        return str(result.config["experiment"])
    method, hparams = result.config.get("method", {}), result.config.get("hparams", {})
    parts = [result.model]
    if method.get("capacity") is not None:
        parts.append(f"{str(method.get('capacity_knob') or 'capacity').replace(' ', '-')}{method['capacity']}")
    if hparams.get("lr") is not None:
        parts.append(f"lr{hparams['lr']:g}")
    return f"{result.method}/{'-'.join(parts)}"


def peft_config_there(job: Path, result: JobResult) -> dict[str, Any] | None:
    """As saved with the adapter; without one, what was asked for. None for full fine-tuning."""
    origin = read_json(job / benchmark.SOURCE_FILE, DataError)
    if origin is not None:
        return find(origin, "run_info.peft_config")  # type: ignore[no-any-return]
    method = result.config.get("method", {})
    if method.get("peft_type") is None:
        return None
    saved = read_json(job / ADAPTER_FOLDER / benchmark.ADAPTER_FILE, DataError)
    found = saved or {"peft_type": method["peft_type"], "task_type": None} | method.get("peft", {})
    # The saved one may name a folder of this machine, and says that the adapter is not to be trained on.
    return found | {"base_model_name_or_path": find(result.config, "model.id"), "inference_mode": False}
