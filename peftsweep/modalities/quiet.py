"""The progress bars of other libraries."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """One progress display at a time: ours."""
    # diffusers has its own switch, and is imported for images only.
    switches = [transformers_logging, *([sys.modules["diffusers"].utils.logging] if "diffusers" in sys.modules else [])]
    shown = [switch for switch in switches if switch.is_progress_bar_enabled()]
    for switch in shown:
        switch.disable_progress_bar()
    try:
        yield
    finally:
        for switch in shown:
            switch.enable_progress_bar()
