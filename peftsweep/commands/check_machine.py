"""`peftsweep doctor`: what this machine can do, told in seconds, with a file to attach to an issue."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from peftsweep.commands.words import build_parser
from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.records.files import write_whole

if TYPE_CHECKING:
    from rich.console import Console

    from peftsweep.checkup.findings import Finding
    from peftsweep.config.schema import TrackingConfig

REPORT = Path("outputs/doctor.json")
COLOURS = {"ok": "green", "heed": "yellow", "fault": "red"}
DETAILS = """Settings of a job say what is looked at: device=cpu, tracking.uri=http://host:5000, cache=/scratch/cache.
Exit code: 0 if jobs can run, 1 if they can't. The same, with all numbers, is written to outputs/doctor.json."""


def run(arguments: Sequence[str]) -> int:
    """Look at everything, tell each finding as it is made, and what they come to. Raises ConfigError for settings that
    are none."""
    parser = build_parser("doctor", "Look whether jobs can run here.", DETAILS)
    parser.add_argument("settings", nargs="*", help="key=value, as of a job")
    options = parser.parse_args(arguments)
    config = build_config(compose_config(options.settings))
    from rich.console import Console

    from peftsweep.checkup.findings import Mark, verdict
    from peftsweep.records.environment import describe_environment

    console, findings = Console(), []
    for finding in _findings(config.device, config.tracking, Path(config.cache)):
        findings.append(finding)
        _show(console, finding)
    console.print(f"\n{verdict(findings)}", style="bold")
    content = {
        "verdict": verdict(findings),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "findings": [asdict(finding) for finding in findings],
        "environment": describe_environment(),
    }
    console.print(f"report  {_write(json.dumps(content, indent=2))}", highlight=False, soft_wrap=True)
    return int(any(finding.mark is Mark.FAULT for finding in findings))


def _findings(device: str, tracking: TrackingConfig, cache: Path) -> Iterator[Finding]:
    from peftsweep.checkup.surroundings import (
        find_folders,
        find_hub,
        find_launchers,
        find_machine,
        find_tracking,
        find_versions,
    )

    yield from find_versions()
    yield from find_machine()
    yield from find_launchers()
    yield from find_folders(REPORT.parent, cache)
    yield from find_tracking(tracking)
    yield from find_hub()
    from peftsweep.checkup.trial import find_trials, open_bench  # imports torch
    from peftsweep.job.device import choose_device

    with tempfile.TemporaryDirectory() as folder:
        yield from find_trials(open_bench(Path(folder), choose_device(device)))


def _show(console: Console, finding: Finding) -> None:
    from rich.table import Table

    row = Table.grid(padding=(0, 2, 0, 0), expand=True)
    row.add_column(width=5, style=COLOURS[finding.mark])
    row.add_column(width=12)
    row.add_column(ratio=1, overflow="fold")
    row.add_row(
        finding.mark, finding.about, " ".join(filter(None, (finding.said + "." * bool(finding.fix), finding.fix)))
    )
    console.print(row, highlight=False)


def _write(text: str) -> Path:
    try:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        write_whole(REPORT, text + "\n")
    except OSError:
        path = Path(tempfile.gettempdir()) / f"peftsweep-{REPORT.name}"
        write_whole(path, text + "\n")
        return path
    return REPORT
