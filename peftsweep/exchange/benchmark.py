"""The PEFT library's benchmark (huggingface/peft, method_comparison) and this package, name by name.

One table serves both directions. Only what means the same stands here; what has another meaning there, or none, is
dealt with in reading.py and writing.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MARK = "reference"  # value of the setting `origin` of what was read from there
TEXT, IMAGE = "metamath", "image-gen"
FOLDERS = {TEXT: "MetaMathQA", IMAGE: "image-gen"}  # of a task, there
MODALITIES = {TEXT: "text", IMAGE: "image"}
MODEL_NAMES = {"meta-llama/Llama-3.2-3B": "llama-3.2-3b", "black-forest-labs/FLUX.2-klein-base-4B": "flux2-klein-4b"}
WARMUP_FRACTION = 0.1  # of the cosine schedule, a constant there

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


def _template_to_ours(text: str) -> str:
    return text.replace("{query}", "{prompt}")


def _template_to_theirs(text: str) -> str:
    return text.replace("{prompt}", "{query}")


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
    Setting(
        "lr_scheduler", "hparams.scheduler", lambda name: name or "constant", lambda n: None if n == "constant" else n
    ),
    Setting("optimizer_type", "hparams.optimizer"),
    Setting("optimizer_kwargs.lr", "hparams.lr"),
    Setting("optimizer_kwargs.weight_decay", "hparams.weight_decay"),
)
OF_TASK = {
    TEXT: (
        Setting("max_seq_length", "hparams.max_seq_length"),
        Setting("attn_implementation", "model.attn_implementation"),
        Setting("query_template", "task.template", _template_to_ours, _template_to_theirs),
        Setting("generation_kwargs.max_new_tokens", "task.max_new_tokens"),
    ),
    IMAGE: (
        Setting("dataset_id", "task.dataset"),
        Setting("instance_prompts", "task.prompts"),
        Setting("resolution", "task.resolution"),
        Setting("valid_size", "task.valid_photos"),
        Setting("test_size", "task.test_photos"),
        Setting("num_inference_steps", "task.inference_steps"),
        Setting("guidance_scale", "task.guidance"),
        Setting("max_sequence_length", "task.max_prompt_tokens"),
        Setting("text_encoder_out_layers", "task.text_encoder_layers"),
        Setting(
            "weighting_scheme",
            "task.noise_density",
            lambda name: "uniform" if name == "none" else name,
            lambda name: "none" if name == "uniform" else name,
        ),
        Setting("logit_mean", "task.logit_mean"),
        Setting("logit_std", "task.logit_std"),
        Setting("mode_scale", "task.mode_scale"),
        Setting("dino_model_id", "task.encoder"),
        Setting("drift_image_prompts", "task.drift_prompts"),
        Setting("sample_image_prompts", "task.sample_prompts"),
    ),
}

# Dotted key of the whole file -> metric.
TOTALS = {
    "run_info.total_time": "time/job_seconds",
    "train_info.accelerator_memory_reserved_avg": "memory/train_reserved_avg_bytes",
    "train_info.accelerator_memory_reserved_99th": "memory/train_reserved_p99_bytes",
    "train_info.file_size": "adapter/file_bytes",
    "train_info.num_trainable_params": "adapter/trainable_params",
    "train_info.num_total_params": "adapter/total_params",
}
# `train_info.accelerator_memory_max` is of the whole job for text, of training alone for images.
PEAK = "train_info.accelerator_memory_max"
PEAK_METRIC = {TEXT: "memory/job_peak_reserved_bytes", IMAGE: "memory/train_peak_reserved_bytes"}
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

# PEFT arguments that say where an adapter came from or what training left in it, not how it was asked for.
NOT_ASKED_FOR = frozenset(
    {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
    | {"rank_pattern", "alpha_pattern"}
)
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

# Hook of a method that brings its own optimizer -> optimizer_type there, and how its arguments are called.
OPTIMIZERS: dict[str, tuple[str, dict[str, str]]] = {
    "lora_fa": ("lora-fa", {}),
    "lora_plus": ("lora+", {"lr_ratio": "loraplus_lr_ratio"}),
    "lora_riemannian": ("riemannian", {"reg": "reg"}),
}


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
