"""Which methods of a matrix `make test` tries; continuous integration tries all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

# Layers beside others, factors, rotations, ranks that change, virtual tokens, all weights, a head alone.
QUICK = ("lora", "ia3", "oft", "adalora", "prompt-tuning", "full", "head")


def quick_and_slow(methods: Iterable[str]) -> list[Any]:
    """Parameters of a test, all but a few kinds of methods marked slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(methods)]
