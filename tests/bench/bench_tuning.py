"""Whether a tuned sweep finds what an exhaustive grid finds, for a fifth of its training tokens. Everything is trained.

python tests/bench/bench_tuning.py              5 sweep seeds, a quarter of an hour on two idle cores
python tests/bench/bench_tuning.py --seeds 1

The baseline is sweep_grid.csv (12 learning rates x 2 capacities a method; see sweep_grid.py). Each sweep searches the
same ranges under budget.tokens, with the defaults of hydra/sweeper=fair. `gap` is the best validation loss of a trial
that ran to its end, over the grid's best, minus 1.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sweep_grid import GRIDS, SETTINGS, STEPS, TABLE, learning_rates

TOKEN_SHARE = 0.2
Found = tuple[float, float, int, int]  # gap, share of the grid's tokens, trials, of them run to their end


def grid_of(method: str) -> tuple[float, int]:
    """Best final loss, and training tokens of all points; one that diverged counts up to its last report."""
    with TABLE.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["method"] == method]
    whole = max(int(row["tokens"]) for row in rows)
    points = {(row["capacity"], row["lr"]) for row in rows}
    best = min(float(row["valid_loss"]) for row in rows if int(row["step"]) == STEPS)
    return best, whole * len(points)


def tune(method: str, seed: int, extra: list[str], folder: Path) -> Found:
    """One sweep over one method, with one worker: its trials come one after the other."""
    capacities, highest = GRIDS[method]
    rates = learning_rates(highest)
    budget = int(TOKEN_SHARE * grid_of(method)[1])
    searched = [
        f"hparams.lr=interval({rates[-1]},{rates[0]})",
        f"method.capacity=choice({','.join(map(str, capacities))})",
    ]
    own = [f"budget.tokens={budget}", f"sampler_seed={seed}", "confirm.seeds=0", f"name={method}-{seed}", "workers=1"]
    command = [sys.executable, "-m", "peftsweep", "-m", "hydra/sweeper=fair", f"method={method}"]
    command += [*searched, *own, *SETTINGS, *extra]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return _read(folder / "outputs/sweeps" / f"{method}-{seed}", method)


def _read(sweep: Path, method: str) -> Found:
    from peftsweep.sweeps.execution.storage import open_storage
    from peftsweep.sweeps.execution.tickets import Tickets

    trials = Tickets(open_storage(sweep, None), f"{sweep.name}/{method}").trials()
    best, tokens = grid_of(method)
    values = [trial.value for trial in trials if trial.value is not None]
    spent = sum(trial.outcome.tokens for trial in trials if trial.outcome)
    return min(values) / best - 1, spent / tokens, len(trials), len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("extra", nargs="*", help="overrides, sampler.name=tpe for one")
    options = parser.parse_args()
    asked = [(method, seed) for seed in range(options.seeds) for method in GRIDS]
    found: dict[str, list[Found]] = {method: [] for method in GRIDS}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        results = pool.map(lambda one: tune(*one, options.extra, Path(folder)), asked)
        for (method, seed), result in zip(asked, results, strict=True):
            found[method].append(result)
            print(f"seed {seed} {method:<9} gap {result[0]:+.2%} at {result[1]:.1%} of the grid's tokens", flush=True)
    _print(found)


def _print(found: dict[str, list[Any]]) -> None:
    print(f"\n{'method':<10}{'grid best':>10}{'median gap':>12}{'worst':>8}{'tokens':>8}{'trials':>8}{'finished':>10}")
    for method, results in found.items():
        gaps, shares, trials, finished = zip(*results, strict=True)
        numbers = f"{statistics.median(gaps):>+12.2%}{max(gaps):>+8.1%}{max(shares):>8.1%}"
        counts = f"{statistics.median(trials):>8.0f}{statistics.median(finished):>10.0f}"
        print(f"{method:<10}{grid_of(method)[0]:>10.4f}{numbers}{counts}")


if __name__ == "__main__":
    main()
