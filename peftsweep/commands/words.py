"""The words after a command's name: `key=value`, as a job's settings are written."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from peftsweep.config.units import COMMAND_LINE
from peftsweep.errors import ConfigError, Problem, did_you_mean

# What a report and a recommendation are about.
SOURCE_WORDS = """\
  sweep=<name>         a sweep under outputs/sweeps, a beginning of its name, or its folder (default: the last one)
  runs=<folder|uri>    any folder of jobs, or an MLflow store such as sqlite:///outputs/mlflow.db"""

SWEEP_HELP = "name of a sweep under outputs/sweeps, a beginning of it, or the sweep's folder"


class _Parser(argparse.ArgumentParser):
    """Takes `port=5077` for `--port=5077`: as every other setting is typed."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known = self._option_string_actions
        return super().parse_known_args(
            [f"--{word}" if f"--{word.partition('=')[0]}" in known and "=" in word else word for word in args or ()],
            namespace,
        )


def build_parser(command: str, description: str, details: str | None = None) -> argparse.ArgumentParser:
    """A parser of a command's arguments. details: shown below them, with its line breaks."""
    style = argparse.RawDescriptionHelpFormatter
    return _Parser(f"peftsweep {command}", description=description, epilog=details, formatter_class=style)


def parse_words(command: str, words: Sequence[str], keys: Collection[str]) -> dict[str, str]:
    """`key=value` words. Raises ConfigError: an unknown key, a key given twice, or a word that is none."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            fix = f"Keys: {', '.join(keys)}."
            raise ConfigError(Problem("it must be written key=value", word, COMMAND_LINE, fix))
        if key not in keys:
            fix = did_you_mean(key, list(keys))
            raise ConfigError(Problem(f"{command} has no such setting", key, COMMAND_LINE, fix))
        if key in found:
            raise ConfigError(Problem("a key must be given once", word, COMMAND_LINE))
        found[key] = value
    return found


def parse_switch(words: Mapping[str, str], key: str, *, default: bool) -> bool:
    """Raises ConfigError for another value than true or false."""
    value = words.get(key, str(default).lower())
    if value not in ("true", "false"):
        raise ConfigError(Problem(f"{key} must be true or false", value, COMMAND_LINE))
    return value == "true"
