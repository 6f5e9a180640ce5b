"""Which methods train the same where several devices hold a model in parts: measured, not typed by hand.

sharded.json has for each method how far 20 losses on two ranks were from those of one process, relative to them, and
how far that of a plain model that read what the ranks had saved; or what went wrong. tests/rank_matrix.py measures it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("sharded.json")
MOST = 1e-3  # Lily is at 1e-4: it mixes its experts by a mean over all tokens of a batch, whatever parts that has


@cache
def _table() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def is_shardable(method: str) -> bool | None:
    """None: nobody has tried it."""
    seen = _table().get(method, {"untried": ""})
    return None if "untried" in seen else not why_not_sharded(method)


def why_not_sharded(method: str) -> str | None:
    """What went wrong on two ranks, in words; None of a method of which nothing bad is known."""
    seen = _table().get(method, {})
    if "error" in seen:
        return str(seen["error"])
    worst = max(seen.get("losses", 0.0), seen.get("reloaded", 0.0))
    return f"its losses differ by {worst:.1e} of themselves" if worst > MOST else None
