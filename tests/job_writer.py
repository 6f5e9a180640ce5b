"""Folders of jobs as peftsweep leaves them, made in a moment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftsweep.records.results import JobResult, Stage, Status, save_result

ENVIRONMENT = {"torch": "2.13.0", "peft": "0.21.2", "cpu": "A processor", "commit": "c0ffee"}
LR = {"key": "hparams.lr", "low": 1e-5, "high": 1e-2, "log": True, "integer": False, "choices": [], "default": 1e-4}


def write_job(
    folder: Path,
    method: str = "lora",
    items: Sequence[float] | None = (1, 0, 1, 1),
    *,
    base: Sequence[float] | None = None,
    seed: int = 0,
    lr: float = 1e-4,
    key: str = "test/accuracy",
    item_key: str = "correct",
    metrics: dict[str, float] | None = None,
    hparams: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    **known: Any,
) -> Path:
    """A finished job. items: scores of its test items; None: it was not judged on test data; base: those of the model
    before training, where that was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, float] = {"memory/train_peak_reserved_bytes": 12e9, "time/train_seconds": 100.0}
    found |= {"forgetting_nats": 0.05, "adapter/trainable_params": 1000, "train/tokens": 5000, "valid/loss": 0.5}
    if items is not None:
        found[key] = sum(items) / len(items)
        lines = [json.dumps({"prompt": "?", item_key: item}) + "\n" for item in items]
        (folder / "predictions.jsonl").write_text("".join(lines))
        known = {"intervals": {key: (0.1, 0.9)}, "test_items": f"{len(items)} items", **known}
    if base is not None:
        found[key.replace("test/", "base/")] = sum(base) / len(base)
        lines = [json.dumps({"prompt": "?", item_key: item}) + "\n" for item in base]
        (folder / "base_predictions.jsonl").write_text("".join(lines))
    settings = {"lr": lr, "max_steps": 100, "batch_size": 4, "gradient_accumulation": 2} | (hparams or {})
    result = JobResult(
        **{
            "status": Status.OK,
            "method": method,
            "model": "pocket-llama",
            "task": "metamath",
            "seed": seed,
            "metrics": found | (metrics or {}),
            "model_revision": "r1",
            "config": {"hparams": settings, "method": {"name": method, "capacity": 8}} | (config or {}),
            "environment": ENVIRONMENT | (environment or {}),
            "started_at": "2026-01-01T00:00:00+00:00",
            **known,
        }
    )
    save_result(result, folder)
    return folder


def write_sweep(
    folder: Path,
    studies: dict[str, dict[int, Sequence[float]]],
    *,
    default: Sequence[float] | None = None,
    looks: Sequence[int] | None = None,
    margin: str | None = None,
    **known: Any,
) -> Path:
    """A tuned sweep. studies: by method, the items of each confirm seed. Three trials each, the second is the best.

    looks: of a sequential confirmation; None: all seeds are judged once.
    """
    for method, seeds in studies.items():
        own = {"study": f"{folder.name}/{method}", **known}
        for number, (lr, loss) in enumerate(((1e-4, 0.6), (1e-3, 0.4), (1e-2, 0.7))):
            place = folder / method / f"{number:04}"
            write_job(place, method, None, lr=lr, stage=Stage.TUNE, metrics={"valid/loss": loss}, **own)
        for seed, items in seeds.items():
            place = folder / method / f"best-seed-{seed}"
            write_job(place, method, items, seed=seed, lr=1e-3, stage=Stage.CONFIRM, **own)
        if default is not None:
            place = folder / method / "default-seed-1"
            write_job(place, method, default, seed=1, lr=1e-4, stage=Stage.CONFIRM, **own)
    plans = [{"name": f"{folder.name}/{method}", "space": [LR]} for method in studies]
    fixed = {"rule": "fixed", "looks": [], "seeds": max(map(len, studies.values())), "margin": margin}
    confirm = fixed if looks is None else {"rule": "sequential", "looks": list(looks), "seeds": None, "margin": margin}
    plan = {"objective": "valid/loss", "settings": {"constraint": None, "confirm": confirm}, "studies": plans}
    (folder / "sweep.json").write_text(json.dumps(plan))
    return folder
