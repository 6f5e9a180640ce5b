"""`peftsweep methods`: what can be chosen, a line a method, everything of each, or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftsweep.commands.words import build_parser, parse_words
from peftsweep.config.compose import compose_config
from peftsweep.config.registry import modality_names
from peftsweep.config.schema import MethodConfig
from peftsweep.config.units import COMMAND_LINE
from peftsweep.errors import ConfigError, Problem, did_you_mean

ABILITIES = {
    "mergeable": "merge",
    "quantized_base": "quantised",
    "convertible_to_lora": "to LoRA",
    "shardable": "in parts",
}
ANSWERS = {True: "yes", False: "no", None: "?"}
LEGEND = (
    "merge: folds into the base weights; quantised: trains on an int8 or int4 base; to LoRA: converts to it; "
    "in parts: trains the same with parallel=fsdp"
)
RATES = "lr: as published, for large models; {model} trains at {scale:g} times that (hparams.lr_scale)"
DETAILS = """words:
  <method>             only these
  modality=image       only methods for such models
  mergeable            only what can do so; also quantized, lora-convertible, shardable"""


def run(arguments: Sequence[str]) -> int:
    """List the methods with capacity, learning rate and capabilities. Raises ConfigError for an unknown word."""
    parser = build_parser("methods", "List the methods, and what each can do.", DETAILS)
    parser.add_argument("words", nargs="*", metavar="word")
    parser.add_argument("--config-dir", type=Path, help="a folder with your own method/*.yaml")
    parser.add_argument("--long", action="store_true", help="search space, layers and paper too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    described = _find(options.words, options.config_dir)
    if options.json:
        print(json.dumps(described, indent=2))
    elif options.long:
        _print_long(described, is_all=not options.words)
    else:
        _print_table(described)
        default = compose_config([], options.config_dir)
        print(RATES.format(model=default.model.name, scale=default.hparams.lr_scale))
    return 0


def _find(words: Sequence[str], config_dir: Path | None) -> list[dict[str, Any]]:
    """What is known of the methods that the words ask for."""
    from peftsweep.methods.catalog import method_files, read_method_file
    from peftsweep.methods.known_capabilities import describe_capabilities
    from peftsweep.report.analysis.recommend import NEEDS

    files, plain_words = method_files(config_dir), [word for word in words if "=" not in word]
    modality = parse_words("methods", [word for word in words if "=" in word], ("modality",)).get("modality")
    known = [*files, *NEEDS]
    rule = "a word must be a method, or what one can do"
    problems = [Problem(rule, w, COMMAND_LINE, did_you_mean(w, known)) for w in plain_words if w not in known]
    if modality is not None and modality not in modality_names():
        fix = did_you_mean(modality, modality_names())
        problems.append(Problem("there is no modality of this name", modality, COMMAND_LINE, fix))
    if problems:
        raise ConfigError(*problems)
    names = [word for word in plain_words if word in files] or files
    methods = [read_method_file(files[name]) for name in names]
    methods = [method for method in methods if modality is None or modality in method.modalities]
    described = [_describe(*both) for both in zip(methods, describe_capabilities(methods), strict=True)]
    needs = [NEEDS[word][0] for word in plain_words if word in NEEDS]
    return [row for row in described if all(row["capabilities"][need] for need in needs)]


def _describe(method: MethodConfig, capabilities: dict[str, Any]) -> dict[str, Any]:
    shown = ("name", "peft_type", "paper", "capacity", "capacity_knob", "lr", "modalities")
    described = {key: getattr(method, key) for key in shown}
    return described | {"search_space": asdict(method.search_space), "capabilities": capabilities}


def _print_table(described: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console

    from peftsweep.records.quantities import plain
    from peftsweep.report.fitting import TextColumn, print_table

    def of(key: str) -> list[str]:
        return ["" if row[key] is None else plain(row[key]) for row in described]

    able = [row["capabilities"] for row in described]
    console = Console()
    columns = [
        TextColumn("method", of("name"), is_name=True),
        TextColumn("capacity", of("capacity"), 4),
        TextColumn("which is", of("capacity_knob"), 1, is_text=True),
        TextColumn("lr", of("lr"), 5),
        TextColumn("models", [" ".join(row["modalities"]) for row in described], 3, is_text=True),
        *(TextColumn(word, [ANSWERS[can[key]] for can in able], 6, is_text=True) for key, word in ABILITIES.items()),
        TextColumn("paper", of("paper"), is_text=True),
    ]
    print_table(console, columns, "methods --long")
    console.print(LEGEND, style="dim", highlight=False)


def _long_lines(row: dict[str, Any]) -> Iterator[str]:
    """Everything of one method, addresses whole."""
    space, able = row["search_space"], row["capabilities"]
    yield row["name"]
    if row["capacity"] is not None:
        yield f"  {row['capacity']} {row['capacity_knob']}, to try: {' '.join(map(str, space['capacity'] or []))}"
    yield f"  lr {row['lr']:g}, to try: {space['lr'][0]:g} to {space['lr'][1]:g}"
    yield f"  {', '.join(f'{word}: {ANSWERS[able[key]]}' for key, word in ABILITIES.items())}"
    layers = f", layers {' '.join(able['layers'])}" if able["layers"] else ""
    *others, last = row["modalities"]
    yield f"  {', '.join(others)}{' and ' if others else ''}{last} models{layers}"
    yield f"  {row['paper']}"


def _print_long(described: Sequence[dict[str, Any]], *, is_all: bool) -> None:
    from peftsweep.methods.catalog import NOT_SWEPT

    for row in described:
        print(*_long_lines(row), "", sep="\n")
    print(LEGEND)
    for peft_type, reason in NOT_SWEPT.items() if is_all else ():
        print(f"not offered: {peft_type}, {reason}")
