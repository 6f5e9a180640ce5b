"""What does it cost, and save, to spread a job over two ranks that hold the model in parts?

    python tests/bench/bench_ranks.py

On CPU with gloo, against one process with as many threads, in turn: wall time of training on the embedded model, whose
losses must be equal; then the host memory of each rank with a model of 1 GB that is made here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peftsweep.modalities.text.pocket import LLAMA_FOLDER

WAYS = {"one process": ("parallel=none",), "two ranks": ("parallel=fsdp", "parallel.dp_shard_size=2")}
BLOCKS = 12


def run_job(folder: Path, name: str, *settings: str) -> dict[str, Any]:
    line = [sys.executable, "-m", "peftsweep", "device=cpu", "tracking=none", "plan=false", f"hydra.run.dir={name}"]
    threads = {"OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [*line, *settings], cwd=folder, env=os.environ | threads, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    found: dict[str, Any] = json.loads((folder / name / "result.json").read_text())
    history = [json.loads(row) for row in (folder / name / "history.jsonl").read_text().splitlines()]
    return found | {"losses": [row["train/loss"] for row in history if "train/loss" in row]}


def compare_time(folder: Path, repetitions: int, steps: int) -> None:
    settings = [f"hparams.max_steps={steps}", "hparams.eval_every=0", "task.test_rows=20", "task.valid_rows=20"]
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    losses = {}
    for repetition in range(repetitions):
        for way, parallel in WAYS.items():
            result = run_job(folder, f"{way} {repetition}".replace(" ", "-"), *settings, *parallel)
            seconds[way].append(result["metrics"]["time/train_seconds"])
            losses[way] = result["losses"]
    one, two = (losses[way] for way in WAYS)
    worst = max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True))
    middle = {way: statistics.median(found) for way, found in seconds.items()}
    ratio = middle["two ranks"] / middle["one process"]
    print(f"{steps} steps, medians of {repetitions}: ", end="")
    print(", ".join(f"{way} {middle[way]:.2f} s" for way in WAYS), f"ratio {ratio:.2f}", sep=", ")
    print(f"largest relative difference of a loss: {worst:.1e}")


def make_model(folder: Path) -> int:
    """A model of 1 GB in float32; bytes of all, and of a block."""
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(LLAMA_FOLDER)),
        hidden_size=1280,
        intermediate_size=4096,
        num_hidden_layers=BLOCKS,
        num_attention_heads=20,
        num_key_value_heads=10,
    )
    model = LlamaForCausalLM(config).to(torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(LLAMA_FOLDER).save_pretrained(folder)
    return sum(weight.nbytes for weight in model.parameters())


def compare_memory(folder: Path) -> None:
    size = make_model(folder / "model")
    settings = [
        "model=hf",
        f"model.id={folder / 'model'}",
        "model.dtype=float32",
        "task.source=embedded",
        "hparams.max_steps=2",
        "hparams.eval_every=0",
        "hparams.max_seq_length=128",
        "task.test_rows=2",
        "task.valid_rows=2",
        "task.general_rows=2",
        "task.max_new_tokens=4",
        "save_adapter=false",
    ]
    peaks = {}
    for way, parallel in WAYS.items():
        result = run_job(folder, f"memory-{way}".replace(" ", "-"), *settings, *parallel)
        own = [result["metrics"]["memory/job_peak_rss_bytes"]]
        peaks[way] = [float(peak) for peak in result["environment"].get("peak_bytes_by_rank", "").split()] or own
    empty = run_job(folder, "memory-of-little", *(s for s in settings if not s.startswith("model")))
    bare = empty["metrics"]["memory/job_peak_rss_bytes"]
    one, worst = peaks["one process"][0], max(peaks["two ranks"])
    print(f"a model of {size / 1e9:.2f} GB; a job on the embedded one takes {bare / 1e9:.2f} GB")
    print(f"one process {one / 1e9:.2f} GB, ranks {', '.join(f'{peak / 1e9:.2f}' for peak in peaks['two ranks'])} GB")
    print(f"ratio {worst / one:.2f}; of what the model adds {(worst - bare) / (one - bare):.2f}")
    print(f"a rank's model: {(worst - bare) / (size / 2 + size / BLOCKS):.2f} of its half and one block")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare_time(Path(folder), options.repetitions, options.steps)
        compare_memory(Path(folder))


if __name__ == "__main__":
    main()
