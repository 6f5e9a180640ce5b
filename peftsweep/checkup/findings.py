"""What a check found, and what all of them come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Mark(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    HEED = "heed"  # something can't be had here, or is not as good as it might be
    FAULT = "fault"  # jobs will fail


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. about: in a word or two; said: what was found; fix: the way out; measured: numbers,
    by the keys of METRICS where they are such."""

    about: str
    mark: Mark
    said: str
    fix: str = ""
    measured: dict[str, float] = field(default_factory=dict)


def verdict(findings: Sequence[Finding]) -> str:
    """In a sentence."""
    faults, heeded = (sum(finding.mark is mark for finding in findings) for mark in (Mark.FAULT, Mark.HEED))
    if faults:
        return f"Jobs will fail here: {_counted(faults, 'fault')} to mend."
    return "Ready." if not heeded else f"Ready, with {_counted(heeded, 'thing')} to heed."


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"
