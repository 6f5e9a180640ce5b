"""From the command line to a composed configuration, by Hydra's own rules; the one place that knows where `conf/`
is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from peftsweep.config.hydra_internals import flags_parser
from peftsweep.config.schema import NEEDED
from peftsweep.errors import ConfigError, Problem

CONFIG_NAME = "config"


def config_folder() -> Path:
    """`conf/`: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def config_folders(config_dir: Path | None) -> list[Path]:
    """Ours, and the user's own, which wins where both have a name."""
    return [config_folder(), *([config_dir] if config_dir else [])]


def register_resolvers() -> None:
    """`${times:2,${method.capacity}}`: a product, an integer when all factors are integers. `${last_part:model.id}`: of
    a hub id or a path; empty where it is missing."""
    OmegaConf.register_new_resolver("times", lambda *factors: math.prod(factors), replace=True)
    OmegaConf.register_new_resolver("last_part", _last_part, replace=True)


def _last_part(key: str, *, _root_: DictConfig) -> str:
    value = OmegaConf.select(_root_, key)
    return "" if value is None else Path(str(value)).resolve().name


@dataclass(frozen=True)
class CommandLine:
    """What was typed: overrides, the user's own configuration folder, and whether it is a sweep."""

    overrides: tuple[Override, ...]
    config_dir: Path | None = None
    multirun: bool = False
    shows_only: bool = False  # --help, --cfg, --info: nothing will run

    def names(self, key: str) -> bool:
        """Whether a key or group was typed."""
        return any(override.key_or_group == key for override in self.overrides)

    def typed(self, key: str) -> str:
        """What was typed as the value of a key; empty if nothing was."""
        lines = (str(override.input_line) for override in self.overrides if override.key_or_group == key)
        return next(lines, "").partition("=")[2]

    @property
    def is_fair(self) -> bool:
        """Whether it is a fair sweep."""
        return self.typed("hydra/sweeper") == "fair"

    def source(self, key: str) -> str:
        """Where the value of a key comes from, in words for an error."""
        return "the command line" if self.names(key) else ""


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Read Hydra's flags and overrides. Raises ConfigError for bad syntax."""
    options = flags_parser().parse_args(list(arguments))
    try:
        overrides = tuple(OverridesParser.create().parse_overrides(options.overrides))
    except OverrideParseException as error:
        rule = f"a setting must be written key=value in Hydra's grammar ({str(error).splitlines()[0]})"
        is_setting = "=" in str(error.override)
        fix = "Quote special characters." if is_setting else "A command is the first word after peftsweep."
        raise ConfigError(Problem(rule, error.override, "the command line", fix)) from error
    config_dir = Path(options.config_dir).absolute() if options.config_dir else None
    shows_only = any((options.help, options.hydra_help, options.cfg, options.info, options.shell_completion))
    return CommandLine(overrides, config_dir, bool(options.multirun), shows_only)


@lru_cache
def group_choices(group: str, config_dir: Path | None = None) -> tuple[str, ...]:
    """The names that a group can take, ours and those of the user's own folder; of Hydra's groups, of plugins too."""
    if group.startswith("hydra/"):
        with _hydra():
            loader = GlobalHydra.instance().config_loader()
            return tuple(loader.get_group_options(group, config_name=CONFIG_NAME, overrides=search_path(config_dir)))
    folders = [folder / group for folder in config_folders(config_dir)]
    names = {path.relative_to(folder).with_suffix("") for folder in folders for path in folder.rglob("*.yaml")}
    return tuple(sorted(name.as_posix() for name in names))


@lru_cache
def needs_more(group: str, name: str, config_dir: Path | None = None) -> bool:
    """Whether a choice leaves a setting open that must be given beside it."""
    files = (folder / group / f"{name}.yaml" for folder in config_folders(config_dir))
    return any(NEEDED in file.read_text(encoding="utf-8") for file in files if file.exists())


@lru_cache
def group_names(config_dir: Path | None = None) -> tuple[str, ...]:
    names = {path.name for folder in config_folders(config_dir) for path in folder.iterdir() if path.is_dir()}
    return tuple(sorted(names - {"hydra"}))


def search_path(config_dir: Path | None) -> list[str]:
    """The override that adds a user's own folder of YAML files."""
    return [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []


def _hydra() -> AbstractContextManager[None]:
    GlobalHydra.instance().clear()
    return initialize_config_dir(str(config_folder()), version_base="1.3")


def compose_config(overrides: Sequence[str], config_dir: Path | None = None, *, with_hydra: bool = False) -> DictConfig:
    """The configuration that a job with these overrides gets. Raises Hydra's own exceptions."""
    register_resolvers()
    with _hydra():
        return compose(CONFIG_NAME, overrides=[*overrides, *search_path(config_dir)], return_hydra_config=with_hydra)
