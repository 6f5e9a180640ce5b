"""First guesses: what users of neighbouring tools type, and the line that says it here.

The words are those of transformers' TrainingArguments, TRL, PEFT, axolotl, LLaMA-Factory, Lightning and Optuna. What a
word means is looked up before its letters are compared. A new word is added to the row of the line that it means.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from peftsweep.config.compose import CommandLine, group_choices
from peftsweep.config.registry import settings_of
from peftsweep.config.schema import SweepConfig
from peftsweep.errors import did_you_mean

FAIR = "-m hydra/sweeper=fair"
OF_SWEEPS = tuple(field.name for field in dataclasses.fields(SweepConfig))
OWN_ROWS = "task=sft task.train_files=<jsonl, parquet or csv>"

# What to type -> the words that others have for it: a setting's name, or a setting with its value. {value} is what was
# typed; where the line has just one such setting, what is said of its value is looked up in turn.
MEANINGS = {
    "hparams.lr={value}": "lr learning_rate base_lr peak_lr max_lr",
    "hparams.max_steps={value}": "steps num_steps total_steps train_steps max_train_steps iterations",
    "hparams.batch_size={value}": "bs per_device_train_batch_size train_batch_size micro_batch_size",
    "hparams.eval_batch_size={value}": "per_device_eval_batch_size val_batch_size test_batch_size",
    "hparams.gradient_accumulation={value}": "gradient_accumulation_steps grad_accum accumulate_grad_batches",
    "hparams.optimizer={value}": "optim optimizer_type optimizer_name",
    "hparams.optimizer=AdamW": "hparams.optimizer=adamw_torch hparams.optimizer=adamw_torch_fused",
    "++hparams.optimizer_kwargs.betas=[0.9,0.999]": "betas adam_beta1 adam_beta2",
    "++hparams.optimizer_kwargs.eps={value}": "eps adam_epsilon",
    "hparams.weight_decay={value}": "wd",
    "hparams.scheduler={value}": "lr_scheduler lr_scheduler_type lr_schedule",
    "hparams.scheduler=constant": "hparams.scheduler=none hparams.scheduler=constant_with_warmup",
    "hparams.scheduler=cosine": "hparams.scheduler=cosine_with_restarts hparams.scheduler=cosine_with_min_lr",
    "hparams.warmup_fraction={value}": "warmup_ratio",
    "hparams.warmup_fraction=<a share of hparams.max_steps>": "warmup warmup_steps num_warmup_steps",
    "hparams.max_grad_norm={value}": "grad_clip gradient_clip_val gradient_clipping clip_grad_norm",
    "hparams.max_seq_length={value}": "max_length max_len seq_len seq_length sequence_len cutoff_len model_max_length",
    "hparams.gradient_checkpointing={value}": "grad_checkpointing activation_checkpointing",
    "hparams.compile={value}": "torch_compile",
    "hparams.eval_every={value}": "eval_steps eval_interval val_check_interval",
    "hparams.checkpoint_every={value}": "save_steps save_interval checkpointing_steps",
    "hparams.amp=true": "mixed_precision autocast",
    "method={value}": "adapter adapter_type finetuning_type peft_method peft_type tuner",
    "method=lora model.dtype=int4": "method=qlora",
    "method=dora model.dtype=int4": "method=qdora use_qdora",
    "method=dora": "use_dora",
    "method=rslora": "use_rslora",
    "method=lora-plus": "method=lora+ method=loraplus loraplus_lr_ratio",
    "method=full": "method=fft method=finetune method=finetuning method=full_finetuning method=none",
    "method=ia3": "method=(ia)3",
    "method.capacity={value}": "rank r lora_r lora_rank lora_dim network_dim num_virtual_tokens oft_block_size",
    "++method.peft.lora_alpha={value}": "alpha lora_alpha",
    "++method.peft.lora_dropout={value}": "dropout lora_dropout",
    "++method.peft.modules_to_save={value}": "modules_to_save",
    "++method.peft.bias={value}": "lora_bias",
    "method.targets=<attention, mlp or linear>": "target_modules lora_target lora_target_modules lora_target_linear",
    "model={value}": "base_model model_id model_name model_name_or_path name_or_path model_path",
    "model.dtype={value}": "torch_dtype precision",
    "model.dtype=bfloat16": "bf16 model.dtype=bf16 model.dtype=half",
    "model.dtype=float16": "fp16 model.dtype=fp16",
    "model.dtype=float32": "fp32 model.dtype=fp32 model.dtype=32",
    "model.dtype=int8": "load_in_8bit model.dtype=8bit model.dtype=8",
    "model.dtype=int4": "load_in_4bit quantization_bit model.dtype=4bit model.dtype=nf4 model.dtype=4",
    "model.attn_implementation=flash_attention_2": "flash_attention flash_attn use_flash_attention_2",
    "task={value}": "data dataset datasets dataset_name dataset_path data_path train_data train_file train_dataset",
    "task=metamath": "task=gsm8k task=math task=metamathqa",
    "task=image-gen": "task=dreambooth task=image task=images task=text-to-image",
    OWN_ROWS: "task=chat task=instruct task=custom task=alpaca",
    "task.valid_files={value}": "validation_file val_data eval_file eval_dataset",
    "task.test_files={value}": "test_file test_data test_dataset",
    "task.train_rows={value}": "max_samples max_train_samples num_samples",
    "task.valid_rows={value}": "val_set_size val_size max_eval_samples",
    "task.prompt_column={value}": "input_column text_column dataset_text_field",
    "task.response_column={value}": "target_column output_column label_column",
    "task.template={value}": "prompt_template",
    "task.loss_on=response": "train_on_inputs completion_only_loss assistant_only_loss train_on_responses_only",
    "hparams.tf32={value}": "tf32 allow_tf32",
    "seed={value}": "random_seed random_state data_seed",
    "-m seed=0,1,2": "seeds n_seeds num_seeds",
    "hydra.run.dir={value}": "output_dir out_dir output_path save_dir logging_dir",
    "device={value}": "cuda accelerator device_map",
    "gpu={value}": "vram gpu_memory max_memory",
    "fit=true": "auto_find_batch_size",
    "save_adapter={value}": "save_model",
    "resume={value}": "resume_from resume_from_checkpoint",
    "tracking=<mlflow or none>": "report_to wandb use_wandb tracking=wandb tracking=tensorboard",
    "tracking.experiment={value}": "experiment_name project wandb_project",
    "tracking.uri={value}": "mlflow_uri tracking_uri mlflow_tracking_uri",
    "hydra/sweeper=fair, which asks Optuna; basic is a plain grid": "hydra/sweeper=optuna hydra/sweeper=ax",
    "n_trials={value}": "trials ntrials num_trials max_trials max_evals",
    "budget.gpu_seconds={value}": "timeout time_limit",
    "workers={value}": "n_jobs num_workers n_workers jobs",
    "objective={value}": "metric metric_for_best_model monitor",
    "name={value}": "study_name sweep_name run_name",
}
PUBLISHED_RATES = ("method.lr", "method.search_space.lr")  # facts of a method; hparams.lr is what is typed
EPOCHS = ("epochs", "epoch", "num_epochs", "num_train_epochs", "max_epochs", "n_epochs")

# The same of what is typed as a command: `-m ...` and nothing are jobs, the rest are commands.
COMMAND_WORDS = {
    FAIR: "sweep tune search optimize hpo compare benchmark optuna",
    "": "train run fit job start finetune fine-tune launch",
    "methods": "list ls",
    "report": "show results table summary",
    "recommend": "best winner",
    "ui": "mlflow dashboard",
    "plan": "estimate memory vram",
    "export": "merge convert",
    "--help": "help",
}


def _by_word(rows: dict[str, str]) -> dict[str, str]:
    return {word: line for line, words in rows.items() for word in words.split()}


LINE_OF = _by_word(MEANINGS)
COMMAND_OF = _by_word(COMMAND_WORDS)


def setting_hint(key: str, known: Sequence[str], *, line: CommandLine, config: DictConfig, schema: type) -> str:
    """What to type in place of a setting that there is not. known: keys of the same group; schema: of the whole job."""
    if key in OF_SWEEPS:
        return f"It is a setting of a fair sweep: add {FAIR}."
    inside = (override.key_or_group for override in line.overrides if override.key_or_group.startswith(f"{key}."))
    key = next(inside, key)  # trainer.max_steps, of a group that there is not
    word, value = _plain(key.rpartition(".")[2]), line.typed(key) or str(OmegaConf.select(config, key))
    if word in EPOCHS:
        return _in_steps(value, config)
    if meant := LINE_OF.get(f"{word}={_plain(value)}") or LINE_OF.get(word) or _same_name(word, _keys(schema)):
        return _typed(_with_value(meant, value, line.config_dir), line)
    everywhere = (*_keys(schema), *OF_SWEEPS) if "." not in key else known
    return did_you_mean(key, everywhere, listed=known)


def choice_hint(key: str, value: str, choices: Collection[str], config_dir: Path | None = None) -> str:
    """What to choose in place of a name that a group, or a setting, does not have."""
    meant = _choice(key, value, config_dir)
    return f"Type {meant}." if meant else did_you_mean(value, list(choices))


def command_hint(word: str, rest: Sequence[str], commands: Collection[str]) -> str:
    """The line to type in place of a command that there is not. rest: what was typed after it."""
    group = next((group for group in ("method", "task", "model") if word in group_choices(group)), None)
    meant = f"{group}={word}" if group else COMMAND_OF.get(word.lower())
    if meant is None:
        return f"{did_you_mean(word, list(commands))} A setting of a job is written key=value."
    others = [text for text in rest if text not in meant.split()]
    if meant in ("", FAIR) and not others:
        others = ["method=lora,oft" if meant else "method=lora", "task=metamath"]
    return f"Type {' '.join(filter(None, ['python -m peftsweep', meant, shlex.join(others)]))}"


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")


def _same_name(word: str, keys: Sequence[str]) -> str | None:
    """A setting of that name in another group; none where several have it."""
    found = [key for key in keys if key.rpartition(".")[2] == word]
    return f"{found[0]}={{value}}" if len(found) == 1 else None


def _with_value(meant: str, value: str, config_dir: Path | None) -> str:
    key = meant.removesuffix("={value}")
    return (key != meant and _choice(key, value, config_dir)) or meant.format(value=value)


def _choice(key: str, value: str, config_dir: Path | None) -> str | None:
    """The line for a value of a group or setting that has another name here, or stands for something of one's own."""
    name = value.rpartition("/")[2].lower()
    if meant := LINE_OF.get(f"{key}={value.lower()}") or LINE_OF.get(f"{key}={name}"):
        return meant
    if key in ("model", "task") and name in group_choices(key, config_dir):
        return f"{key}={name}"
    if key == "model" and ("/" in value or Path(value).is_dir()):
        return f"model=hf model.id={value}"
    if key == "task" and Path(value).exists():
        return f"task=sft task.train_files={value}"
    if key == "task" and "/" in value:
        return f"{OWN_ROWS}: rows of the hub are saved to files first"
    return None


def _typed(meant: str, line: CommandLine) -> str:
    if re.split("[.=]", meant)[0] not in OF_SWEEPS or line.is_fair:
        return f"Type {meant}."
    return f"It is a setting of a fair sweep: type {FAIR} {meant}."


def _in_steps(epochs: str, config: DictConfig) -> str:
    """Epochs as steps; the rule alone where nobody knows the number of rows before they are read."""
    keys = ("hparams.batch_size", "hparams.gradient_accumulation")
    batch = math.prod(int(OmegaConf.select(config, key) or 1) for key in keys)
    rows = _rows(config)
    rule = f"Training is counted in steps of {batch} rows"
    try:
        steps = math.ceil(float(epochs) * rows / batch) if rows else None
    except ValueError:
        steps = None
    if steps is None:
        return f"{rule}: hparams.max_steps=<epochs x rows / {batch}>."
    return f"{rule}: {epochs} epochs of {rows:,} are hparams.max_steps={steps}."


def _rows(config: DictConfig) -> int | None:
    """Training rows, as far as the settings or a jsonl file tell them at once."""
    asked, file = (OmegaConf.select(config, f"task.{key}") for key in ("train_rows", "train_files"))
    if asked or not file or not (path := Path(str(file))).is_file() or path.suffix != ".jsonl":
        return asked
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


@lru_cache
def _keys(schema: type) -> tuple[str, ...]:
    """The dotted keys of all settings that can be typed."""
    return tuple(key for key, _ in settings_of(schema) if key not in PUBLISHED_RATES)
