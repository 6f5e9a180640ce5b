"""A job with its own composed configuration, folder and log, by Hydra's own machinery, inside a long-lived process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import run_job, setup_globals
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict

from peftsweep.config.compose import CONFIG_NAME, config_folder, register_resolvers, search_path
from peftsweep.config.hydra_internals import failure_of, no_callbacks
from peftsweep.job.display import Display
from peftsweep.job.resolve import resolve_job
from peftsweep.job.run import Observer
from peftsweep.job.run import run_job as run_one_job


def run_composed(
    overrides: list[str],
    folder: Path,
    config_dir: Path | None,
    *,
    number: int,
    display: Display | None = None,
    begun: Callable[[str | None], None] = lambda run_id: None,
    observe: Observer = lambda step, metrics, tokens: None,
) -> None:
    """Compose a job, run it in `folder` and leave `.hydra/`, `job.log` and all else there. Raises what ended it."""
    context = _context(config_dir)
    config = context.config_loader.load_configuration(
        CONFIG_NAME, [*overrides, *search_path(config_dir)], RunMode.RUN, from_shell=False
    )
    with open_dict(config):
        config.hydra.sweep.dir, config.hydra.sweep.subdir = str(folder.parent), folder.name
        config.hydra.job.id, config.hydra.job.num = f"{folder.parent.name}_{folder.name}", number
        config.hydra.mode = RunMode.MULTIRUN

    def task(job: DictConfig) -> None:
        logging.captureWarnings(True)
        run_one_job(resolve_job(job, overrides), folder, keep_base=True, display=display, begun=begun, observe=observe)

    done = run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)
    _close_log_files()
    if failure := failure_of(done):
        raise failure


@lru_cache(maxsize=1)
def _context(config_dir: Path | None) -> HydraContext:
    register_resolvers()
    setup_globals()
    GlobalHydra.instance().clear()
    initialize_config_dir(str(config_folder()), version_base="1.3", job_name="job")
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return HydraContext(config_loader=hydra.config_loader, callbacks=no_callbacks())


def _close_log_files() -> None:
    """Each job's log handlers hold its job.log open; hundreds of trials in one process would run out of files."""
    for name in (None, "py.warnings"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
                handler.close()
