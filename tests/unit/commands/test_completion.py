"""What a real shell offers when Tab is pressed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BASH = shutil.which("bash")
# As bash calls a completion function, which Hydra's script defines.
PRESS_TAB = """
eval "$(python -m peftsweep --shell-completion install=bash)"
complete -p peftsweep >&2
COMP_LINE=$1; COMP_POINT=${#COMP_LINE}; COMP_WORDS=($1); COMP_CWORD=$2
hydra_bash_completion
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(BASH is None, reason="no bash on this machine")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("peftsweep re", {"report", "recommend", "retry", "resume="}),
        ("peftsweep report sweep=mon", {"sweep=monday"}),
        ("peftsweep retry tu", {"tuesday"}),
        ("peftsweep methods lora-", {"lora-fa", "lora-ga", "lora-plus", "lora-riemannian"}),
        ("peftsweep method=dor", {"method=dora"}),
    ],
)
def test_tab_offers_commands_sweeps_and_methods_beside_the_settings_of_a_job(
    line: str, offered: set[str], tmp_path: Path
) -> None:
    for name in ("monday", "tuesday"):
        (tmp_path / "outputs/sweeps" / name).mkdir(parents=True)
        (tmp_path / "outputs/sweeps" / name / "sweep.json").touch()
    for name in ("peftsweep", "python"):
        arguments = "-m peftsweep" if name == "peftsweep" else ""
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        (tmp_path / name).chmod(0o700)
    found = subprocess.run(
        [str(BASH), "-c", PRESS_TAB, "bash", line, str(line.count(" "))],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "-F hydra_bash_completion peftsweep" in found.stderr
    assert {*found.stdout.split()} == offered
