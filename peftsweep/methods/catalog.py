"""The methods that can be chosen: the YAML files of conf/method and of a user's own folder, as a table or JSON."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from peftsweep.config.compose import compose_config, config_folder, register_resolvers
from peftsweep.config.schema import MODALITIES, MethodConfig
from peftsweep.errors import ConfigError, Problem

ABILITIES = {"mergeable": "merge", "quantized_base": "quantised", "convertible_to_lora": "to LoRA"}
ANSWERS = {True: "yes", False: "no", None: "?"}

FROM_FILE = "from_file"  # a placeholder: its method stands in the folder that it points to

# Types of the installed peft that a sweep can't use as one adapter trained on one task, with the reason.
NOT_SWEPT = {
    "XLORA": "mixes LoRA adapters that were trained before: there is nothing to start from in a sweep",
    "POLY": "learns which of its adapters each of several tasks shares: batches need task ids, a job has one task",
    "MULTITASK_PROMPT_TUNING": "shares one prompt between several tasks: batches need task ids, a job has one task",
}


def method_files(config_dir: Path | None = None) -> dict[str, Path]:
    """Name -> YAML file, built-in and the user's own; the user's wins where both have the name."""
    folders = [config_folder(), *([config_dir] if config_dir else [])]
    files = {path.stem: path for folder in folders for path in sorted((folder / "method").glob("*.yaml"))}
    return {name: files[name] for name in sorted(files) if name != FROM_FILE}


def read_method_file(path: Path) -> MethodConfig:
    """Read one YAML with its interpolations resolved. Raises ConfigError if it doesn't fit MethodConfig."""
    register_resolvers()
    try:
        method = OmegaConf.merge(OmegaConf.structured(MethodConfig), _content(path))
        root = OmegaConf.create({"method": method})
        OmegaConf.resolve(root)
        read = OmegaConf.to_object(root.method)
    except Exception as error:  # OmegaConf's errors share no base with YAML's
        raise ConfigError(Problem(f"the file must hold a method ({error})", source=str(path))) from error
    assert isinstance(read, MethodConfig)
    return read


def _content(path: Path) -> Any:
    """A file's own settings, or, where it builds on another method by a defaults list, what Hydra composes."""
    content = OmegaConf.load(path)
    if "defaults" not in content:
        return content
    return compose_config([f"method={path.stem}"], path.parent.parent).method


def capabilities_of(name: str) -> dict[str, Any]:
    """What a method can do, see capabilities.py; empty for a name that no built-in file has."""
    from peftsweep.methods.capabilities import find_capabilities

    files = method_files()
    return find_capabilities(read_method_file(files[name])).to_dict() if name in files else {}


def print_methods(names: list[str], config_dir: Path | None = None, *, as_json: bool = False) -> int:
    """List the methods with capacity, search space, paper and capabilities; returns the exit code.

    Raises ConfigError for a name that no file has.
    """
    methods = _chosen(names, method_files(config_dir))
    described = [_describe(method) for method in methods]
    if as_json:
        print(json.dumps(described, indent=2))
        return 0
    console = Console()
    console.print(_table(described))
    console.print(
        "[dim]merge: folds into the base weights; quantised: trains on an int8 or int4 base; to LoRA: converts to it[/]"
    )
    if not names:
        for peft_type, reason in NOT_SWEPT.items():
            console.print(f"[dim]not offered: {peft_type}, {reason}[/]")
    return 0


def _chosen(names: list[str], files: dict[str, Path]) -> list[MethodConfig]:
    problems = []
    for name in names:
        if name not in files:
            close = difflib.get_close_matches(name, files, n=1)
            fix = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(files)}."
            problems.append(Problem("a method must be a file of conf/method", name, "the command line", fix))
    if problems:
        raise ConfigError(*problems)
    return [read_method_file(files[name]) for name in names or files]


def _describe(method: MethodConfig) -> dict[str, Any]:
    # Late: peft takes seconds to import, and a typo in a name should not wait for it.
    from peftsweep.methods.capabilities import find_capabilities

    return {
        "name": method.name,
        "peft_type": method.peft_type,
        "paper": method.paper,
        "capacity": method.capacity,
        "capacity_knob": method.capacity_knob,
        "lr": method.lr,
        "modalities": method.modalities,
        "search_space": asdict(method.search_space),
        "capabilities": find_capabilities(method).to_dict(),
    }


def _table(described: list[dict[str, Any]]) -> Table:
    """Three columns of several lines each, so that 80 characters are enough."""
    table = Table(title="Methods", title_justify="left", show_lines=True)
    table.add_column("method", no_wrap=True)
    table.add_column("default (to try)", overflow="fold")
    table.add_column("can do, layers, paper", overflow="fold")
    for row in described:
        table.add_row(row["name"], _settings(row), _abilities(row))
    return table


def _settings(row: dict[str, Any]) -> str:
    space = row["search_space"]
    lr = f"lr {row['lr']:g} ({space['lr'][0]:g} to {space['lr'][1]:g})"
    if row["capacity"] is None:
        return lr
    return f"{row['capacity']} {row['capacity_knob']} ({' '.join(map(str, space['capacity'] or []))})\n{lr}"


def _abilities(row: dict[str, Any]) -> str:
    able = row["capabilities"]
    answers = [f"{word}: {ANSWERS[able[key]]}" for key, word in ABILITIES.items()]
    models = [] if len(row["modalities"]) == len(MODALITIES) else [f"{' and '.join(row['modalities'])} models only"]
    layers = [" ".join(able["layers"])] if able["layers"] else []
    return "\n".join([", ".join(answers), *models, *layers, row["paper"]])
