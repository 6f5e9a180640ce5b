"""peftsweep: which PEFT method to use, on your model, your data and your GPU, found out fairly."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`peftsweep.sweep(...)` for notebooks, imported when it is first asked for: the command line starts quickly."""
    if name == "sweep":
        from peftsweep.sweeps.start import sweep

        return sweep
    raise AttributeError(f"module 'peftsweep' has no attribute {name!r}")
