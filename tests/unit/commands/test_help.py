"""Every command answers `--help` at once, and is listed in the help of the program."""

import importlib
import subprocess
import sys

from peftsweep.commands import COMMANDS

SLOW = ["torch", "transformers", "peft", "mlflow", "optuna", "scipy", "statsmodels", "pandas", "numpy", "matplotlib"]


def test_each_command_is_one_module_with_the_same_door():
    for name, (module, line) in COMMANDS.items():
        assert callable(importlib.import_module(f"peftsweep.commands.{module}").run), name
        assert line


def test_help_and_a_misspelt_command_import_nothing_slow():
    code = f"""
import sys
from peftsweep.__main__ import main
from peftsweep.commands import COMMANDS
for name in [*COMMANDS, "repot"]:
    try:
        main([name, "--help"])
    except SystemExit:
        pass
    found = sorted(set(sys.modules) & set({SLOW!r}))
    print("slow:", name, *found)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line.startswith("slow:")] == [
        f"slow: {name}" for name in [*COMMANDS, "repot"]
    ]
    assert done.stdout.count("usage: peftsweep") == len(COMMANDS)
    assert "Did you mean report" in done.stderr


def test_the_programs_help_lists_every_command():
    done = subprocess.run([sys.executable, "-m", "peftsweep", "--help"], capture_output=True, text=True, check=True)
    for name, (_, line) in COMMANDS.items():
        assert f"  {name:<10} {line}\n" in done.stdout
