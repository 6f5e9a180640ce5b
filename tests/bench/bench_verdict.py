"""How often confirmation decides, how often it is wrong, what it costs: simulated sweeps whose truth is known.

python tests/bench/bench_verdict.py                       a few minutes on one idle core
python tests/bench/bench_verdict.py --repetitions 200

Nothing is trained. Six methods answer the same test items, which are drawn anew in each repetition, as are the seeds;
the margin is the default of the test set's size. `sequential` is confirm.rule=sequential, beside one look at 3 or 10
seeds of each method. `wrong` is the share of all repetitions in which another method is truly better than the one
called best, or one that is called as good is truly more than the margin below the best. `runs` are jobs, on average.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from simulated_truths import COLLAPSING, TRUTHS, UNSEEN, Truth, confirm, is_wrong

from peftsweep.statistics.intervals import Floats
from peftsweep.statistics.sequential import LOOKS, Kind, default_margin

RULES = {"sequential": LOOKS, "fixed 3": (3,), "fixed 10": (10,)}
SHARES = ("decided", "best", "equal", "wrong")


def measure(truth: Truth, repetitions: int) -> dict[str, Floats]:
    """By rule: the shares of sweeps that end with a claim, with either of them, with a wrong one; jobs on average."""
    random, margin = np.random.default_rng(0), default_margin(truth.items)
    rows: dict[str, list[tuple[float, ...]]] = {rule: [] for rule in RULES}
    for _ in range(repetitions):
        answers = truth.draw(LOOKS[-1], random)
        for rule, looks in RULES.items():
            verdict, runs = confirm(answers, margin, looks)
            best, equal = verdict.kind is Kind.BEST, verdict.kind is Kind.EQUAL
            rows[rule].append((best or equal, best, equal, is_wrong(verdict, truth), runs))
    return {rule: np.mean(found, axis=0) for rule, found in rows.items()}


def _line(name: str, found: Floats) -> str:
    return f"{name:<26}" + "".join(f"{value:>9.1%}" for value in found[:-1]) + f"{found[-1]:>7.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    repetitions = parser.parse_args().repetitions
    found = {name: measure(truth, repetitions) for name, truth in {**TRUTHS, **COLLAPSING, **UNSEEN}.items()}
    for rule in RULES:
        print(f"\n{rule:<26}" + "".join(f"{share:>9}" for share in SHARES) + f"{'runs':>7}")
        for name, by_rule in found.items():
            print(_line(name, by_rule[rule]))
        for title, names in (("mean of the first 6", [*TRUTHS]), ("mean of the first 8", [*TRUTHS, *COLLAPSING])):
            print(_line(title, np.mean([found[name][rule] for name in names], axis=0)))


if __name__ == "__main__":
    main()
