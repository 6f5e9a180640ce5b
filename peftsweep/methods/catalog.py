"""The methods that can be chosen: the YAML files of conf/method and of a user's own folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from peftsweep.config.check import modality_problem
from peftsweep.config.compose import compose_config, config_folders, register_resolvers
from peftsweep.config.schema import MethodConfig
from peftsweep.errors import ConfigError, Problem

FROM_FILE = "from_file"  # a placeholder: its method stands in the folder that it points to

# Types of the installed peft that a sweep can't use as one adapter trained on one task, with the reason.
NOT_SWEPT = {
    "XLORA": "mixes LoRA adapters that were trained before: there is nothing to start from in a sweep",
    "POLY": "learns which of its adapters each of several tasks shares: batches need task ids, a job has one task",
    "MULTITASK_PROMPT_TUNING": "shares one prompt between several tasks: batches need task ids, a job has one task",
}


def method_files(config_dir: Path | None = None) -> dict[str, Path]:
    """Name -> YAML file, built-in and the user's own; the user's wins where both have the name."""
    folders = config_folders(config_dir)
    files = {path.stem: path for folder in folders for path in sorted((folder / "method").glob("*.yaml"))}
    return {name: files[name] for name in sorted(files) if name != FROM_FILE}


def read_method_file(path: Path) -> MethodConfig:
    """Read one YAML with its interpolations resolved. Raises ConfigError if it doesn't fit MethodConfig."""
    register_resolvers()
    try:
        content = OmegaConf.load(path)
        if "defaults" in content:  # it builds on another method: what Hydra composes
            content = compose_config([f"method={path.stem}"], path.parent.parent).method
        root = OmegaConf.create({"method": OmegaConf.merge(OmegaConf.structured(MethodConfig), content)})
        OmegaConf.resolve(root)
        read = OmegaConf.to_object(root.method)
    except Exception as error:  # OmegaConf's errors share no base with YAML's
        raise ConfigError(Problem(f"the file must hold a method ({error})", source=str(path))) from error
    assert isinstance(read, MethodConfig)
    if problem := modality_problem(read):
        raise ConfigError(replace(problem, source=str(path)))
    return read
