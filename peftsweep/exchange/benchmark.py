"""The PEFT library's benchmark (huggingface/peft, method_comparison) and this package, name by name.

One table serves both directions. Only what means the same stands here; what has another meaning there, or none, is
dealt with where it is read and written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftsweep.errors import PeftsweepError, Problem

TEXT, IMAGE = "metamath", "image-gen"
# Hub id -> name in conf/model.
MODEL_NAMES = {"meta-llama/Llama-3.2-3B": "llama-3.2-3b", "black-forest-labs/FLUX.2-klein-base-4B": "flux2-klein-4b"}
WARMUP_FRACTION = 0.1  # of the cosine schedule, a constant there

# Files of an experiment's folder, and beside a job that was read from there: the result file itself.
ADAPTER_FILE, TRAINING_FILE = "adapter_config.json", "training_params.json"
SOURCE_FILE = "reference.json"
OWN_SECTION = "meta_info.peftsweep"  # what an export adds: all that the format has no place for

# Written there where nothing was measured.
INVENTED = (123, 555, 99999999)


def same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Setting:
    """One setting: dotted key of `run_info.train_config` there, dotted key of the configuration here."""

    theirs: str
    ours: str
    to_ours: Callable[[Any], Any] = same
    to_theirs: Callable[[Any], Any] = same


def renamed(theirs: str, ours: str, their_value: str | None, our_value: str) -> Setting:
    """A setting of which one value has another name there."""
    return Setting(
        theirs,
        ours,
        lambda value: our_value if value == their_value else value,
        lambda value: their_value if value == our_value else value,
    )


# What an experiment may set; the rest is the same for all experiments of a task.
TRAINING = (
    Setting("model_id", "model.id"),
    Setting("dtype", "model.dtype"),
    Setting("seed", "seed"),
    Setting("max_steps", "hparams.max_steps"),
    Setting("batch_size", "hparams.batch_size"),
    Setting("batch_size_eval", "hparams.eval_batch_size"),
    Setting("eval_steps", "hparams.eval_every"),
    Setting("grad_norm_clip", "hparams.max_grad_norm"),
    Setting("use_gc", "hparams.gradient_checkpointing"),
    Setting("use_amp", "hparams.amp"),
    Setting("compile", "hparams.compile"),
    Setting("autocast_adapter_dtype", "hparams.adapter_float32"),
    renamed("lr_scheduler", "hparams.scheduler", None, "constant"),
    Setting("optimizer_type", "hparams.optimizer"),
    Setting("optimizer_kwargs.lr", "hparams.lr", float),
    Setting("optimizer_kwargs.weight_decay", "hparams.weight_decay", float),
)


@dataclass(frozen=True)
class BenchmarkTask:
    """A task there. folder: its name there; mark: a setting that no other task has; peak_metric: what
    `accelerator_memory_max` is, of the whole job for text, of training alone for images."""

    folder: str
    mark: str
    peak_metric: str
    settings: tuple[Setting, ...]


# By the name of the task here.
TASKS = {
    TEXT: BenchmarkTask(
        "MetaMathQA",
        "query_template",
        "memory/job_peak_reserved_bytes",
        (
            Setting("max_seq_length", "hparams.max_seq_length"),
            Setting("attn_implementation", "model.attn_implementation"),
            Setting(
                "query_template",
                "task.template",
                lambda text: text.replace("{query}", "{prompt}"),
                lambda text: text.replace("{prompt}", "{query}"),
            ),
            Setting("generation_kwargs.max_new_tokens", "task.max_new_tokens"),
        ),
    ),
    IMAGE: BenchmarkTask(
        "image-gen",
        "instance_prompts",
        "memory/train_peak_reserved_bytes",
        (
            Setting("dataset_id", "task.dataset"),
            Setting("instance_prompts", "task.prompts"),
            Setting("resolution", "task.resolution"),
            Setting("valid_size", "task.valid_photos"),
            Setting("test_size", "task.test_photos"),
            Setting("num_inference_steps", "task.inference_steps"),
            Setting("guidance_scale", "task.guidance"),
            Setting("max_sequence_length", "task.max_prompt_tokens"),
            Setting("text_encoder_out_layers", "task.text_encoder_layers"),
            renamed("weighting_scheme", "task.noise_density", "none", "uniform"),
            Setting("logit_mean", "task.logit_mean"),
            Setting("logit_std", "task.logit_std"),
            Setting("mode_scale", "task.mode_scale"),
            Setting("dino_model_id", "task.encoder"),
            Setting("drift_image_prompts", "task.drift_prompts"),
            Setting("sample_image_prompts", "task.sample_prompts"),
        ),
    ),
}
SETTINGS = (*TRAINING, *(setting for task in TASKS.values() for setting in task.settings))
# Keys of training_params.json that mean nothing here, or are dealt with apart.
WITHOUT_SETTING = {"init_kv_cache_prefix", "dataset_split", "image_column", "repeats", "dino_image_size"}
KNOWN_KEYS = {setting.theirs.partition(".")[0] for setting in SETTINGS} | WITHOUT_SETTING

# Dotted key of the whole file -> metric.
TOTALS = {
    "run_info.total_time": "time/job_seconds",
    "train_info.accelerator_memory_reserved_avg": "memory/train_reserved_avg_bytes",
    "train_info.accelerator_memory_reserved_99th": "memory/train_reserved_p99_bytes",
    "train_info.file_size": "adapter/file_bytes",
    "train_info.num_trainable_params": "adapter/trainable_params",
    "train_info.num_total_params": "adapter/total_params",
}
PEAK = "train_info.accelerator_memory_max"
# Key of the last entry of `train_info.metrics` -> metric. Drift is (1 - cosine)/2 in every result that was published,
# as here; early versions of that benchmark's code, from before its first results, did not halve it.
AT_END = {
    "test accuracy": "test/accuracy",
    "test dino_similarity": "test/dino_similarity",
    "forgetting": "forgetting_nats",
    "drift": "drift",
    "train total tokens": "train/tokens",
    "train loss": "train/loss",
}
# Key of an earlier entry -> metric by step. The loss there is a mean over the steps since the entry before.
BY_STEP = {
    "valid accuracy": "valid/accuracy",
    "valid dino_similarity": "valid/dino_similarity",
    "valid loss": "valid/loss",
    "train loss": "train/loss",
}

# Field of an environment -> dotted key of `meta_info`.
ENVIRONMENT = {
    "torch": "package_info.torch-version",
    "transformers": "package_info.transformers-version",
    "peft": "package_info.peft-version",
    "datasets": "package_info.datasets-version",
    "diffusers": "package_info.diffusers-version",
    "gpu": "system_info.accelerator",
}
COMMIT = "package_info.peft-commit-hash"

# PEFT arguments that say where an adapter came from and what model it was for, or what training left in it: not how it
# was asked for.
PROVENANCE = frozenset(
    {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
)
LEFT_BY_TRAINING = frozenset({"rank_pattern", "alpha_pattern"})
# PEFT type -> argument that is its capacity, and what that is; all others have a rank, if anything.
CAPACITY = {
    "ADALORA": ("target_r", "rank"),
    "OFT": ("oft_block_size", "block size"),
    "BOFT": ("boft_block_size", "block size"),
    "PROMPT_TUNING": ("num_virtual_tokens", "virtual tokens"),
    "P_TUNING": ("num_virtual_tokens", "virtual tokens"),
    "PREFIX_TUNING": ("num_virtual_tokens", "virtual tokens"),
    "ADAPTION_PROMPT": ("adapter_len", "prompt length"),
}
RANK = ("r", "rank")


@dataclass(frozen=True)
class OwnOptimizer:
    """A method's own optimizer: there an optimizer_type, here a hook. arguments: name there -> of the hook here;
    of_adapter: given there once more, here read from the adapter."""

    optimizer_type: str
    hook: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    of_adapter: tuple[str, ...] = ()


OPTIMIZERS = (
    OwnOptimizer("lora-fa", "lora_fa", of_adapter=("r", "lora_alpha", "use_rslora")),
    OwnOptimizer("lora+", "lora_plus", {"loraplus_lr_ratio": "lr_ratio"}),
    OwnOptimizer("riemannian", "lora_riemannian", {"reg": "reg"}),
)


def is_measured(value: Any) -> bool:
    """Whether a value of their file is a finite number that somebody measured."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value not in INVENTED


def find(tree: Mapping[str, Any], dotted: str) -> Any:
    """The value under a dotted key; None where there is none."""
    node: Any = tree
    for key in dotted.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def has(tree: Mapping[str, Any], dotted: str) -> bool:
    parent, _, key = dotted.rpartition(".")
    node = find(tree, parent) if parent else tree
    return isinstance(node, Mapping) and key in node


def put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value


def take_settings(config: dict[str, Any], theirs: Mapping[str, Any], table: Sequence[Setting]) -> None:
    """Set in a configuration of ours what their settings have of a table."""
    for setting in table:
        if has(theirs, setting.theirs):
            put(config, setting.ours, setting.to_ours(find(theirs, setting.theirs)))


def put_settings(theirs: dict[str, Any], config: Mapping[str, Any], table: Sequence[Setting]) -> None:
    """The way back."""
    for setting in table:
        if has(config, setting.ours):
            put(theirs, setting.theirs, setting.to_theirs(find(config, setting.ours)))


def read_json(path: Path, error_class: type[PeftsweepError]) -> dict[str, Any] | None:
    """None where there is no file. Raises error_class for one that holds no JSON object."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise error_class(Problem(f"the file must be readable JSON ({error})", source=str(path))) from error
    if not isinstance(content, dict):
        raise error_class(Problem("the file must hold a JSON object", type(content).__name__, str(path)))
    return content
