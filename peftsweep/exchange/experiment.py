"""What a job asked for, as an experiment of the PEFT library's benchmark: its name, settings and PEFT configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftsweep.errors import DataError, Problem
from peftsweep.exchange.benchmark import OPTIMIZERS, TRAINING, Setting, find, has, put
from peftsweep.exchange.reading import SOURCE_FILE
from peftsweep.records.files import ADAPTER_FOLDER
from peftsweep.records.results import JobResult

ADAPTER_FILE = "adapter_config.json"


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


def training_params(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that an experiment sets of how to train: content of training_params.json."""
    params: dict[str, Any] = {}
    put_settings(params, config, TRAINING)
    params.setdefault("optimizer_kwargs", {}).update(find(config, "hparams.optimizer_kwargs") or {})
    _name_own_optimizer(params, config)
    return params


def put_settings(params: dict[str, Any], config: Mapping[str, Any], table: Sequence[Setting]) -> None:
    """Set in `params` what the job's configuration has of a table of settings."""
    for setting in table:
        if has(config, setting.ours):
            put(params, setting.theirs, setting.to_theirs(find(config, setting.ours)))


def _name_own_optimizer(params: dict[str, Any], config: Mapping[str, Any]) -> None:
    """There, an optimizer that belongs to a method is an optimizer_type, not a hook."""
    hook = find(config, "method.hook") or {}
    if hook.get("name") not in OPTIMIZERS:
        return
    params["optimizer_type"], renamed = OPTIMIZERS[hook["name"]]
    given = hook.get("kwargs") or {}
    params["optimizer_kwargs"] |= {theirs: given[ours] for ours, theirs in renamed.items() if ours in given}
    if hook["name"] == "lora_fa":  # its function there asks for them once more
        params["optimizer_kwargs"] |= {key: find(config, f"method.peft.{key}") for key in ("r", "lora_alpha")}


def peft_config_there(job: Path, result: JobResult) -> dict[str, Any] | None:
    """As saved with the adapter; without one, what was asked for. None for full fine-tuning."""
    origin = read_json(job / SOURCE_FILE)
    if origin is not None:
        return find(origin, "run_info.peft_config")  # type: ignore[no-any-return]
    method = result.config.get("method", {})
    if method.get("peft_type") is None:
        return None
    saved = read_json(job / ADAPTER_FOLDER / ADAPTER_FILE)
    found = saved or {"peft_type": method["peft_type"], "task_type": None} | method.get("peft", {})
    # The saved one may name a folder of this machine, and says that the adapter is not to be trained on.
    return found | {"base_model_name_or_path": find(result.config, "model.id"), "inference_mode": False}


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(Problem(f"the file must be readable JSON ({error})", source=str(path))) from error
    return content if isinstance(content, dict) else None
