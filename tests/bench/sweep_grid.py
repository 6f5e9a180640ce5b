"""The exhaustive grid that tuned sweeps are measured against: every curve of validation loss, kept in sweep_grid.csv.

python tests/bench/sweep_grid.py lora lily      appends what the table lacks of these methods, a quarter of an hour each

A third of the embedded task's steps, 12 learning rates (4 per decade) x 2 capacities, one seed: what a careful person
would run without a sampler.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

TABLE = Path(__file__).with_name("sweep_grid.csv")
COLUMNS = ("method", "capacity", "lr", "step", "tokens", "valid_loss")
STEPS = 50
REPORTS = (6, 11, 17, 25)
SETTINGS = (f"hparams.max_steps={STEPS}", "task.valid_rows=400", "task.general_rows=0", "tracking=none", "seed=0")
# Capacities, and the highest learning rate; each method's default lies inside.
GRIDS = {
    "lora": ((8, 32), 1e-1),
    "lily": ((32, 140), 1e-1),
    "oft": ((16, 32), 1e-1),
    "p-tuning": ((10, 20), 1.0),
}


def learning_rates(highest: float) -> list[float]:
    """12 of them, 4 per decade, downwards."""
    return [float(f"{highest * 10 ** (-index / 4):.4g}") for index in range(12)]


def points(method: str) -> Iterator[tuple[int, float]]:
    capacities, highest = GRIDS[method]
    yield from ((capacity, lr) for capacity in capacities for lr in learning_rates(highest))


def known_points() -> set[tuple[str, int, float]]:
    if not TABLE.exists():
        return set()
    with TABLE.open() as stream:
        return {(row["method"], int(row["capacity"]), float(row["lr"])) for row in csv.DictReader(stream)}


def curve(method: str, capacity: int, lr: float, cache: Path) -> list[tuple[int, float, float]]:
    """(step, tokens so far, validation loss) at each report; a diverged run ends with the last finite one."""
    import json

    from peftsweep.config.check import build_config
    from peftsweep.config.compose import compose_config
    from peftsweep.errors import NonFiniteLossError
    from peftsweep.job.run import run_job

    overrides = [f"method={method}", f"method.capacity={capacity}", f"hparams.lr={lr}", "stage=tune", f"cache={cache}"]
    reports = f"hparams.eval_steps=[{','.join(map(str, REPORTS))}]"
    config = build_config(compose_config([*overrides, *SETTINGS, reports]))
    with tempfile.TemporaryDirectory() as folder:
        try:
            total = run_job(config, Path(folder), keep_base=True).metrics["train/tokens"]
        except NonFiniteLossError:
            total = float("nan")
        rows = [json.loads(line) for line in (Path(folder) / "history.jsonl").read_text().splitlines()]
    return [(row["step"], row["step"] / STEPS * total, row["valid/loss"]) for row in rows if "valid/loss" in row]


def main(methods: list[str]) -> None:
    known = known_points()
    with tempfile.TemporaryDirectory() as cache, TABLE.open("a", newline="") as stream:
        table = csv.writer(stream)
        if not known and stream.tell() == 0:
            table.writerow(COLUMNS)
        for method in methods or GRIDS:
            for capacity, lr in points(method):
                if (method, capacity, lr) in known:
                    continue
                for step, tokens, loss in curve(method, capacity, lr, Path(cache)):
                    table.writerow((method, capacity, lr, step, f"{tokens:.0f}", f"{loss:.6g}"))
                stream.flush()
                print(method, capacity, lr, f"{loss:.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
