"""The parts of Hydra that it does not promise to keep, each with the reason; a test says which one has moved."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

# Hydra's own, as a composed configuration names them.
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def flags_parser() -> argparse.ArgumentParser:
    """Of Hydra's flags: a command line is checked before Hydra sees it, and must be read as Hydra will."""
    from hydra._internal.utils import get_args_parser

    parser: argparse.ArgumentParser = get_args_parser()
    return parser


def no_callbacks() -> Any:
    """What a HydraContext must hold of callbacks where none are configured."""
    from hydra._internal.callbacks import Callbacks

    return Callbacks()


def failure_of(done: JobReturn) -> Exception | None:
    """What ended a job of Hydra's run_job. Its public `return_value` prints the exception before it raises it."""
    value = done._return_value
    return value if isinstance(value, Exception) else None
