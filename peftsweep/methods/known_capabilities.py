"""What methods can do, told at once: trying them takes tens of seconds, so that what was found is kept.

Of the built-in methods with the peft of constraints.txt it lies beside this file; of a user's own methods, and with
another peft, in the user's cache.

python -m peftsweep.methods.known_capabilities    # tries all built-in methods, and writes capabilities.json anew
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peftsweep import __version__
from peftsweep.config.schema import MethodConfig
from peftsweep.methods.catalog import method_files, read_method_file
from peftsweep.methods.known_sharding import is_shardable
from peftsweep.records.files import write_whole

SHIPPED_FILE = Path(__file__).with_name("capabilities.json")
Known = dict[str, dict[str, Any]]


def capabilities_of(name: str) -> Mapping[str, Any]:
    """As describe_capabilities; empty for a name that no built-in file has."""
    files = method_files()
    return describe_capabilities([read_method_file(files[name])])[0] if name in files else {}


def describe_capabilities(methods: Sequence[MethodConfig]) -> list[dict[str, Any]]:
    """The fields of `Capabilities`, of each method, and whether it is `shardable`: trains the same where several
    devices hold a model in parts."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = home / "peftsweep" / __version__ / SHIPPED_FILE.name
    cached = _read(cache)
    known, keys = _read(SHIPPED_FILE) | cached, list(map(capability_key, methods))
    if unknown := [method for key, method in zip(keys, methods, strict=True) if key not in known]:
        found = try_methods(unknown)
        known |= found
        with contextlib.suppress(OSError):  # where it can't be written, they are tried again next time
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_whole(cache, _as_text(cached | found), is_shared=True)
    parts = [{"shardable": is_shardable(method.name)} for method in methods]
    return [known[key] | part for key, part in zip(keys, parts, strict=True)]


def capability_key(method: MethodConfig) -> str:
    """By what an answer is known: peft's version, and all that peft is asked with."""
    asked = [method.peft_type, method.peft, method.hook and asdict(method.hook)]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    return f"{version('peft')} {method.name} {digest}"


def try_methods(methods: Iterable[MethodConfig]) -> Known:
    """Ask the installed peft, as capabilities.py does."""
    from peftsweep.methods.capabilities import find_capabilities  # takes seconds: imports peft

    return {capability_key(method): asdict(find_capabilities(method)) for method in methods}


def _read(path: Path) -> Known:
    try:
        found: Known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _as_text(known: Known) -> str:
    """JSON, a line for each."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(able)}" for key, able in known.items())
    return f"{{\n{lines}\n}}\n"


if __name__ == "__main__":
    write_whole(SHIPPED_FILE, _as_text(try_methods(map(read_method_file, method_files().values()))))
