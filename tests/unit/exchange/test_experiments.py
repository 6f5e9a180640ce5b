import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftsweep.config.schema import HookConfig
from peftsweep.errors import MethodError
from peftsweep.exchange.benchmark import ADAPTER_FILE, KNOWN_KEYS, SETTINGS, TRAINING_FILE
from peftsweep.exchange.experiments import read_hparams, read_method, training_params
from peftsweep.methods.attach import attach_method, calibration_batches_wanted
from peftsweep.modalities.text.pocket import LLAMA_FOLDER

REFERENCE = os.environ.get("PEFTSWEEP_REFERENCE", "")
needs_reference = pytest.mark.skipif(not REFERENCE, reason="PEFTSWEEP_REFERENCE names no copy of method_comparison")

# Why an experiment for Llama-3.2-3B can't go on the embedded model: pieces of the error.
TOO_LARGE = {
    "adaptionprompt--llama-3.2-3B-lr_0.0005": "adapter layers",
    "adaptionprompt--llama-3.2-3B-lr_5e-3": "adapter layers",
    "psoft--llama-3.2-3B-fast": "`r` (256) must be less than or equal to",
    "vblora--llama-3.2-3B-default": "must be divisible by `vector_length` 256",
}


def experiments(modality: str) -> list[Path]:
    if not REFERENCE:
        return []
    return sorted(folder for folder in Path(REFERENCE).glob(f"{modality}/experiments/*/*") if folder.is_dir())


def write(folder: Path, adapter: dict | None = None, training: dict | None = None) -> Path:
    folder = folder / "lora" / "rank4"
    folder.mkdir(parents=True)
    if adapter is not None:
        (folder / ADAPTER_FILE).write_text(json.dumps(adapter))
    if training is not None:
        (folder / TRAINING_FILE).write_text(json.dumps(training))
    return folder


def test_an_adapter_becomes_a_method_named_after_its_folder(tmp_path: Path) -> None:
    method = read_method(write(tmp_path, {"peft_type": "LORA", "r": 4}, {"optimizer_kwargs": {"lr": 3e-4}}))
    assert (method.name, method.peft_type, method.lr, method.peft) == ("lora--rank4", "LORA", 3e-4, {"r": 4})


def test_provenance_and_sizes_of_the_base_model_are_left_to_the_run(tmp_path: Path) -> None:
    adapter = {"peft_type": "PREFIX_TUNING", "peft_version": "0.18", "token_dim": 3072, "num_virtual_tokens": 5}
    assert read_method(write(tmp_path, adapter)).peft == {"num_virtual_tokens": 5}


@pytest.mark.parametrize("value", [None, False, {}, []])
def test_an_unknown_key_that_is_off_is_dropped(tmp_path: Path, value: object) -> None:
    assert read_method(write(tmp_path, {"peft_type": "LORA", "r": 4, "new_in_peft_9": value})).peft == {"r": 4}


def test_an_unknown_key_that_is_set_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="new_in_peft_9"):
        read_method(write(tmp_path, {"peft_type": "LORA", "new_in_peft_9": 1}))


def test_an_unknown_type_is_refused_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"got 'BONE'(.|\n)*adapter_config.json"):
        read_method(write(tmp_path, {"peft_type": "BONE"}))


def test_training_parameters_alone_mean_full_fine_tuning(tmp_path: Path) -> None:
    method = read_method(write(tmp_path, training={"optimizer_kwargs": {"lr": 5e-5}}))
    assert (method.peft_type, method.lr) == (None, 5e-5)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"must hold adapter_config\.json"):
        read_method(write(tmp_path))


def test_broken_json_is_refused_with_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path, {"peft_type": "LORA"})
    (folder / ADAPTER_FILE).write_text("{")
    with pytest.raises(MethodError, match=r"readable JSON(.|\n)*adapter_config.json"):
        read_method(folder)


def test_adalora_keeps_its_schedule_as_shares(tmp_path: Path) -> None:
    adapter = {"peft_type": "ADALORA", "init_r": 8, "tinit": 200, "tfinal": 500, "total_step": 5000}
    method = read_method(write(tmp_path, adapter))
    shares = {"tinit": 0.04, "tfinal": 0.1, "total_step": 1.0}
    assert method.hook == HookConfig("rank_allocation", {"step_shares": shares})
    assert method.peft == {"init_r": 8}


@pytest.mark.parametrize(
    ("training", "hook"),
    [
        ({"optimizer_type": "lora-fa", "optimizer_kwargs": {"r": 32, "lora_alpha": 64}}, HookConfig("lora_fa")),
        (
            {"optimizer_type": "riemannian", "optimizer_kwargs": {"reg": 0.1}},
            HookConfig("lora_riemannian", {"reg": 0.1}),
        ),
        ({"init_kv_cache_prefix": "Think."}, HookConfig("text_prefix", {"text": "Think."})),
    ],
)
def test_what_the_benchmark_does_outside_the_adapter_becomes_a_hook(
    tmp_path: Path, training: dict, hook: HookConfig
) -> None:
    assert read_method(write(tmp_path, {"peft_type": "LORA"}, training)).hook == hook


@pytest.mark.parametrize(
    ("adapter", "hook"),
    [
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "eva"}, "eva"),
        ({"kasa_config": {"beta": 1e-4}}, "adds_loss"),
        ({"velora_config": {"num_groups": 32}}, "velora"),
    ],
)
def test_a_lora_variant_brings_its_hook(tmp_path: Path, adapter: dict, hook: str) -> None:
    found = read_method(write(tmp_path, {"peft_type": "LORA", **adapter})).hook
    assert found is not None
    assert found.name == hook


def test_training_parameters_become_hparams(tmp_path: Path) -> None:
    training = {
        "max_steps": 300,
        "eval_steps": 100,
        "lr_scheduler": None,
        "grad_norm_clip": 0.5,
        "autocast_adapter_dtype": False,
        "optimizer_kwargs": {"lr": 0.2, "weight_decay": 0, "betas": [0.9, 0.95]},
    }
    assert read_hparams(write(tmp_path, training=training)) == {
        "max_steps": 300,
        "eval_every": 100,
        "scheduler": "constant",
        "max_grad_norm": 0.5,
        "adapter_float32": False,
        "lr": 0.2,
        "weight_decay": 0.0,
        "optimizer_kwargs": {"betas": [0.9, 0.95]},
    }


def test_a_methods_own_optimizer_leaves_hparams_optimizer_alone(tmp_path: Path) -> None:
    training = {"optimizer_type": "lora-fa", "optimizer_kwargs": {"r": 32, "lora_alpha": 64, "lr": 1e-4}}
    assert read_hparams(write(tmp_path, training=training)) == {"lr": 1e-4}


def test_no_training_parameters_set_no_hparams(tmp_path: Path) -> None:
    assert read_hparams(write(tmp_path, {"peft_type": "LORA"})) == {}


def test_a_key_that_the_benchmark_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="got 'max_stepps'"):
        read_hparams(write(tmp_path, training={"max_stepps": 3}))


def test_settings_of_the_image_task_are_left_to_the_task(tmp_path: Path) -> None:
    training = {"use_gc": True, "weighting_scheme": "none", "guidance_scale": 3.5, "resolution": 512}
    assert read_hparams(write(tmp_path, training=training)) == {"gradient_checkpointing": True}


@pytest.mark.parametrize("hook", [None, {"name": "lora_fa"}, {"name": "lora_plus", "kwargs": {"lr_ratio": 8.0}}])
def test_what_is_written_of_a_job_is_read_back(tmp_path: Path, hook: dict | None) -> None:
    hparams = {"max_steps": 3, "scheduler": "constant", "optimizer": "AdamW", "lr": 1e-3, "weight_decay": 0.1}
    method = {"hook": hook, "peft": {"r": 4, "lora_alpha": 8}}
    written = training_params({"hparams": hparams | {"optimizer_kwargs": {"eps": 1e-6}}, "method": method})
    folder = write(tmp_path, {"peft_type": "LORA", "r": 4}, written)
    kept = hparams if hook is None else {key: value for key, value in hparams.items() if key != "optimizer"}
    assert read_hparams(folder) == kept | {"optimizer_kwargs": {"eps": 1e-6}}
    found = read_method(folder).hook
    assert found == (hook and HookConfig(hook["name"], hook.get("kwargs", {})))


def test_a_setting_stands_once_in_the_table_of_both_directions() -> None:
    assert len({setting.theirs for setting in SETTINGS}) == len(SETTINGS)
    assert len({setting.ours for setting in SETTINGS}) == len(SETTINGS)


@needs_reference
def test_the_reference_benchmarks_own_defaults_are_read() -> None:
    for defaults in Path(REFERENCE).glob("*/default_training_params.json"):
        assert set(json.loads(defaults.read_text())) <= KNOWN_KEYS


@needs_reference
@pytest.mark.parametrize("folder", experiments("*"), ids=lambda folder: f"{folder.parent.name}--{folder.name}")
def test_every_experiment_of_the_reference_benchmark_is_read(folder: Path) -> None:
    read_method(folder)
    read_hparams(folder)


@needs_reference
@pytest.mark.parametrize("folder", experiments("MetaMathQA"), ids=lambda folder: f"{folder.parent.name}--{folder.name}")
def test_every_text_experiment_attaches_to_the_embedded_model_or_says_why_not(folder: Path) -> None:
    method = read_method(folder)
    model = AutoModelForCausalLM.from_pretrained(LLAMA_FOLDER, dtype=torch.float32)
    ids = torch.arange(20, 84).reshape(2, 32)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    batches = [batch] * min(1, calibration_batches_wanted(method))
    tokenizer = AutoTokenizer.from_pretrained(LLAMA_FOLDER)
    if method.name not in TOO_LARGE:
        attached = attach_method(model, method, total_steps=10, tokenizer=tokenizer, calibration_batches=batches)
        assert attached.trainable_parameters()
        return
    with pytest.raises(MethodError) as caught:
        attach_method(model, method, total_steps=10, tokenizer=tokenizer, calibration_batches=batches)
    assert TOO_LARGE[method.name] in str(caught.value)
