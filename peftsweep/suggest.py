"""What to say to a word that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(word: str, known: Sequence[str], listed: Iterable[str] | None = None) -> str:
    """The nearest known words; where none is near, those to choose from: all, or the `listed` ones of many."""
    close = difflib.get_close_matches(word, known, n=2)
    choices = sorted(known if listed is None else listed)
    return f"Did you mean {' or '.join(close)}?" if close else f"Choose from: {', '.join(choices)}."
