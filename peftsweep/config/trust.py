"""What a configuration file from a stranger must not do: run code of its own choice.

Hydra builds objects (`_target_`), logging imports classes, `env_set` reaches every program that a job starts. What is
typed on the command line is the user's own and may do more than a file may.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peftsweep.config.compose import CommandLine
from peftsweep.config.hydra_internals import BASIC_LAUNCHER, BASIC_SWEEPER
from peftsweep.config.registry import schema_of, settings_of
from peftsweep.config.schema import JobConfig
from peftsweep.errors import ConfigError, Problem

# Whole names: a prefix would trust everything that a module imports, `peftsweep.__main__.os.system` for one.
TRUSTED_TARGETS = frozenset(
    {
        BASIC_LAUNCHER,
        BASIC_SWEEPER,
        "hydra.experimental.callbacks.LogJobReturnCallback",
        "hydra.experimental.callbacks.PickleJobInfoCallback",
    }
)
OWN_PLUGIN = re.compile(r"hydra_plugins\.peftsweep_\w+(\.\w+)*\.[A-Z]\w*(Launcher|Sweeper)")
ANY_PLUGIN = re.compile(r"hydra_plugins(\.\w+)+\.[A-Z]\w*(Launcher|Sweeper)")
TRUSTED_LOGGING = frozenset(
    {
        "logging.FileHandler",
        "logging.Formatter",
        "logging.NullHandler",
        "logging.StreamHandler",
        "logging.handlers.RotatingFileHandler",
        "logging.handlers.TimedRotatingFileHandler",
        "rich.logging.RichHandler",
        "colorlog.ColoredFormatter",
    }
)
TRUSTED_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
ENVIRONMENT = "hydra.job.env_set"


def untrusted_settings(config: DictConfig, line: CommandLine) -> Iterator[Problem]:
    """Problems of a composed configuration, Hydra's part included, that would run code nobody vouched for."""
    yield from _untrusted_nodes(config, "", line)
    variables = [f"{ENVIRONMENT}.{name}" for name in OmegaConf.select(config, ENVIRONMENT) or ()]
    for key in (*code_settings(config), *variables):
        if OmegaConf.select(config, key) and not line.names(key):
            rule = f"{key} can run code, so only the command line can set it"
            yield Problem(rule, OmegaConf.select(config, key), "a YAML file")


def code_settings(config: DictConfig) -> tuple[str, ...]:
    """Dotted keys of a job's settings that can run code; those of every job where its task or modality is unknown."""
    try:
        schema = schema_of(config)
    except ConfigError:
        schema = JobConfig
    return tuple(key for key, field in settings_of(schema) if field.metadata.get("runs_code"))


def _untrusted_nodes(node: Any, path: str, line: CommandLine) -> Iterator[Problem]:
    for key in node if OmegaConf.is_dict(node) else range(len(node)):
        full = f"{path}{key}"
        if OmegaConf.is_missing(node, key):
            continue
        try:
            value = node[key]
        except OmegaConfBaseException:  # what only a running job knows, its folder for one
            value = None
        is_interpolation = OmegaConf.is_interpolation(node, key)
        if OmegaConf.is_config(value) and not is_interpolation:
            yield from _untrusted_nodes(value, f"{full}.", line)
        elif value is not None or is_interpolation:
            yield from _untrusted_value(value, str(key), full, line)


def _untrusted_value(value: Any, key: str, full: str, line: CommandLine) -> Iterator[Problem]:
    in_logging = re.match(r"hydra\.\w*logging\.", full) is not None
    if OmegaConf.is_config(value) and full.startswith("hydra."):
        yield Problem("a part of Hydra's settings can't be taken from elsewhere as a whole", source=full)
    elif key == "_target_" and not _is_trusted_target(str(value), line):
        rule = "a configuration can't run code outside the trusted classes"
        yield Problem(rule, str(value), full, f"Trusted: {', '.join(sorted(TRUSTED_TARGETS))}.")
    elif in_logging and key in ("class", "()") and value not in TRUSTED_LOGGING:
        rule = "a logging configuration can't build objects outside the trusted classes"
        yield Problem(rule, str(value), full, f"Trusted: {', '.join(sorted(TRUSTED_LOGGING))}.")
    elif in_logging and str(value).startswith("ext://") and value not in TRUSTED_STREAMS:
        yield Problem(f"a logging configuration can only import {' and '.join(TRUSTED_STREAMS)}", str(value), full)


def _is_trusted_target(target: str, line: CommandLine) -> bool:
    """Another package's launcher or sweeper counts if the user asked for one by name."""
    if target in TRUSTED_TARGETS or OWN_PLUGIN.fullmatch(target):
        return True
    chosen = line.names("hydra/launcher") or line.names("hydra/sweeper")
    return chosen and ANY_PLUGIN.fullmatch(target) is not None
