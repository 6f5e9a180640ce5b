"""The exhaustive grid that tuned sweeps are measured against: every curve of validation loss, kept in sweep_grid.csv.

python tests/bench/sweep_grid.py lora lily      appends what the table lacks of these methods

50 steps of 16 rows of the embedded task, 12 learning rates (4 per decade) at up to two capacities with seed 0: what a
careful person would run without a sampler. The best rate and its two neighbours are run with two more seeds, which tell
how far apart losses must be to mean anything. The settings are fixed here, so that the embedded default may change
without another grid. Two processes with different methods may share the table.

The table holds six methods on the task's version 2; ia3 and full can be added. The best capacity of LoRA and of C3A is
not the largest; the seeds of one setting near the optimum differ by 3 to 16% of the loss.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("sweep_grid.csv")
COLUMNS = ("method", "capacity", "lr", "seed", "step", "tokens", "valid_loss")
STEPS = 50
REPORTS = (6, 11, 17, 25)
SETTINGS = (
    *(f"hparams.max_steps={STEPS}", "hparams.batch_size=16", "hparams.scheduler=cosine", "hparams.warmup_fraction=0.1"),
    *("hparams.weight_decay=0", "hparams.max_grad_norm=1", "hparams.max_seq_length=256", "task.loss_on=all"),
    *("task.valid_rows=400", "task.general_rows=0", "task.base_score=false"),
    *("tracking=none", "plan=false", "save_adapter=false"),
)
MORE_SEEDS = (1, 2)
# Capacities, none for a method that has no such knob, and the highest learning rate; each method's default lies inside.
GRIDS: dict[str, tuple[tuple[int | None, ...], float]] = {
    "lora": ((8, 32), 1e-1),
    "lily": ((32, 140), 1e-1),
    "oft": ((16, 32), 1e-1),
    "p-tuning": ((10, 20), 1.0),
    "miss": ((64, 128), 1e-1),
    "c3a": ((32, 64), 1e1),
    "ia3": ((None,), 1.0),
    "full": ((None,), 1e-2),
}

Point = tuple[str, int | None, float, int]  # method, capacity, learning rate, seed


def learning_rates(highest: float) -> list[float]:
    """12 of them, 4 per decade, downwards."""
    return [float(f"{highest * 10 ** (-index / 4):.4g}") for index in range(12)]


def points(method: str) -> Iterator[Point]:
    """What is measured: the grid, then, when it is known, the best of it and its neighbours with more seeds."""
    capacities, highest = GRIDS[method]
    rates = learning_rates(highest)
    yield from ((method, capacity, lr, 0) for capacity in capacities for lr in rates)
    final = {(point[1], point[2]): loss for point, loss in final_losses().items() if point[0] == method}
    capacity, best = min(final, key=lambda setting: final[setting])
    near = rates[max(0, rates.index(best) - 1) : rates.index(best) + 2]
    yield from ((method, capacity, lr, seed) for seed in MORE_SEEDS for lr in near)


def final_losses(table: Path = TABLE) -> dict[Point, float]:
    """Of each measured point the loss at its last report."""
    if not table.exists():
        return {}
    with table.open() as stream:
        return {point_of(row): float(row["valid_loss"]) for row in csv.DictReader(stream)}


def point_of(row: dict[str, Any]) -> Point:
    return row["method"], int(row["capacity"]) if row["capacity"] else None, float(row["lr"]), int(row["seed"])


def curve(point: Point, cache: Path) -> list[tuple[int, float, float]]:
    """(step, tokens so far, validation loss) at each report; a diverged run ends with the last finite one."""
    import json

    from peftsweep.config.check import build_config
    from peftsweep.config.compose import compose_config
    from peftsweep.errors import NonFiniteLossError
    from peftsweep.job.run import run_job

    method, capacity, lr, seed = point
    own = [f"method={method}", f"hparams.lr={lr}", f"seed={seed}", "stage=tune", f"cache={cache}"]
    own += [] if capacity is None else [f"method.capacity={capacity}"]
    reports = f"hparams.eval_steps=[{','.join(map(str, REPORTS))}]"
    config = build_config(compose_config([*own, *SETTINGS, reports]))
    with tempfile.TemporaryDirectory() as folder:
        try:
            total = run_job(config, Path(folder), keep_base=True).metrics["train/tokens"]
        except NonFiniteLossError:
            total = float("nan")
        rows = [json.loads(line) for line in (Path(folder) / "history.jsonl").read_text().splitlines()]
    return [(row["step"], row["step"] / STEPS * total, row["valid/loss"]) for row in rows if "valid/loss" in row]


def main(methods: list[str]) -> None:
    with tempfile.TemporaryDirectory() as cache, TABLE.open("a", newline="") as stream:
        table = csv.writer(stream)
        if stream.tell() == 0:
            table.writerow(COLUMNS)
            stream.flush()
        for method in methods or GRIDS:
            for point in points(method):
                if point in final_losses():
                    continue
                _, capacity, lr, seed = point
                for step, tokens, loss in curve(point, Path(cache)):
                    table.writerow((method, capacity, lr, seed, step, f"{tokens:.0f}", f"{loss:.6g}"))
                stream.flush()
                print(*point, f"{loss:.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
