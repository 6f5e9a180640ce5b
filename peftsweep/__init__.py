"""peftsweep: which PEFT method to use, on your model, your data and your GPU, found out fairly.

`peftsweep.run`, `peftsweep.sweep` and `peftsweep.load` are for Python and notebooks; see `peftsweep.api`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftsweep.api import load, run, sweep

__version__ = "0.1.0"
__all__ = ["load", "run", "sweep"]


def __getattr__(name: str) -> Any:
    """Imported when first asked for: the command line starts quickly."""
    if name in __all__:
        from peftsweep import api

        return getattr(api, name)
    raise AttributeError(f"module 'peftsweep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
