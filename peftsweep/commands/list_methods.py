"""`peftsweep methods`: what can be chosen, as a table or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsweep.commands.words import build_parser
from peftsweep.config.compose import compose_config

if TYPE_CHECKING:
    from rich.table import Table

    from peftsweep.config.schema import MethodConfig

ABILITIES = {"mergeable": "merge", "quantized_base": "quantised", "convertible_to_lora": "to LoRA"}
ANSWERS = {True: "yes", False: "no", None: "?"}
LEGEND = "merge: folds into the base weights; quantised: trains on an int8 or int4 base; to LoRA: converts to it"
RATES = "lr: as published, for large models; {model} trains at {scale:g} times that (hparams.lr_scale)"


def run(arguments: Sequence[str]) -> int:
    """List the methods with capacity, search space, paper and capabilities. Raises ConfigError for an unknown name."""
    parser = build_parser("methods", "List the methods: capacity, search space, paper, capabilities.")
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--config-dir", type=Path, help="a folder with your own method/*.yaml")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    from peftsweep.methods.catalog import NOT_SWEPT, choose_methods

    described = [_describe(method) for method in choose_methods(options.names, options.config_dir)]
    if options.json:
        print(json.dumps(described, indent=2))
        return 0
    from rich.console import Console

    console = Console()
    console.print(_table(described))
    default = compose_config([], options.config_dir)
    console.print(f"[dim]{RATES.format(model=default.model.name, scale=default.hparams.lr_scale)}[/]")
    console.print(f"[dim]{LEGEND}[/]")
    for peft_type, reason in NOT_SWEPT.items() if not options.names else ():
        console.print(f"[dim]not offered: {peft_type}, {reason}[/]")
    return 0


def _describe(method: MethodConfig) -> dict[str, Any]:
    # Late: peft takes seconds to import, and a typo in a name should not wait for it.
    from peftsweep.methods.capabilities import find_capabilities

    shown = ("name", "peft_type", "paper", "capacity", "capacity_knob", "lr", "modalities")
    described = {key: getattr(method, key) for key in shown}
    described["search_space"] = asdict(method.search_space)
    return described | {"capabilities": asdict(find_capabilities(method))}


def _table(described: list[dict[str, Any]]) -> Table:
    """Three columns of several lines each, so that 80 characters are enough."""
    from rich.table import Table

    table = Table(title="Methods", title_justify="left", show_lines=True)
    table.add_column("method", no_wrap=True)
    table.add_column("default (to try)", overflow="fold")
    table.add_column("can do, layers, paper", overflow="fold")
    for row in described:
        space, able = row["search_space"], row["capabilities"]
        settings = [f"lr {row['lr']:g} ({space['lr'][0]:g} to {space['lr'][1]:g})"]
        if row["capacity"] is not None:
            tried = " ".join(map(str, space["capacity"] or []))
            settings.insert(0, f"{row['capacity']} {row['capacity_knob']} ({tried})")
        answers = ", ".join(f"{word}: {ANSWERS[able[key]]}" for key, word in ABILITIES.items())
        models = f"{' and '.join(row['modalities'])} models"
        layers = [" ".join(able["layers"])] if able["layers"] else []
        table.add_row(row["name"], "\n".join(settings), "\n".join([answers, models, *layers, row["paper"]]))
    return table
