"""How long the command line takes to answer, against a bare interpreter that imports torch.

python tests/bench/bench_startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 5
COMMANDS = {
    "import torch (baseline)": [sys.executable, "-c", "import torch"],
    "--help": [sys.executable, "-m", "peftsweep", "--help"],
    "--cfg job": [sys.executable, "-m", "peftsweep", "--cfg", "job"],
    "two bad keys": [sys.executable, "-m", "peftsweep", "hparams.lrr=1", "method=lorra"],
}


def seconds_of(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, check=False)
    return time.perf_counter() - started


def main() -> None:
    medians = {name: statistics.median(seconds_of(command) for _ in range(RUNS)) for name, command in COMMANDS.items()}
    baseline = medians["import torch (baseline)"]
    print(f"{'command':<26}{'median s':>10}{'ratio':>8}")
    for name, median in medians.items():
        print(f"{name:<26}{median:>10.2f}{median / baseline:>8.2f}")


if __name__ == "__main__":
    main()
