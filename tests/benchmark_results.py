"""Result files as the PEFT library's benchmark writes them, made up."""

from __future__ import annotations

from typing import Any


def text_file(**changes: Any) -> dict[str, Any]:
    """As the benchmark writes it for MetaMathQA: two validations of 10 steps, then the test."""
    settings: dict[str, Any] = {
        "model_id": "meta-llama/Llama-3.2-3B",
        "query_template": "Q: {query}\nA:",
        "seed": 0,
        "batch_size": 4,
    }
    settings |= {"optimizer_type": "AdamW", "optimizer_kwargs": {"lr": 3e-4, "weight_decay": 0.1, "eps": 1e-6}}
    settings |= {"lr_scheduler": "cosine", "max_steps": 20, "generation_kwargs": {"max_length": 800}}
    step = {"train loss": 0.9, "train time": 2.0, "valid accuracy": 0.3}
    last = {"step": 20, "test accuracy": 0.5, "train loss": 0.7, "train total tokens": 4000, "forgetting": -0.01}
    file: dict[str, Any] = {
        "run_info": {
            "created_at": "2026-07-15T05:41:18+00:00",
            "total_time": 100.0,
            "experiment_name": "lora/rank8",
            "train_config": settings,
            "peft_config": {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": None},
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": 10,
            "accelerator_memory_max": 30,
            "accelerator_memory_reserved_99th": 20,
            "train_time": 60.0,
            "file_size": 500,
            "num_trainable_params": 100,
            "num_total_params": 1000,
            "status": "success",
            "metrics": [{"step": 10} | step, {"step": 20} | step | {"train loss": 0.7}, last],
        },
        "meta_info": {
            "model_info": {"sha": "abc"},
            "package_info": {"peft-version": "0.19.2.dev0", "peft-commit-hash": "f00d"},
            "system_info": {"system": "Linux", "machine": "x86_64", "accelerator": "NVIDIA L40S"},
        },
    }
    for key, value in changes.items():
        section = next(part for part in ("run_info", "train_info") if key in file[part])
        file[section][key] = value
    return file


def image_file(**changes: Any) -> dict[str, Any]:
    file = text_file(**changes)
    settings = file["run_info"]["train_config"]
    del settings["query_template"]
    settings |= {"instance_prompts": ["sks cat"], "weighting_scheme": "none", "lr_scheduler": None, "max_steps": 25}
    step = {"train loss": 0.9, "train time": 2.0, "valid dino_similarity": 0.6}
    last = {"step": 25, "test dino_similarity": 0.7, "drift": 0.26, "train loss": 0.8}
    file["train_info"]["metrics"] = [{"step": 10} | step, {"step": 20} | step, last]
    return file
