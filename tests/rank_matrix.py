"""Every method on the embedded language model, alone and on several ranks that hold it in parts.

python tests/rank_matrix.py --write     # 20 steps of each method, or of those that are named; into methods/sharded.json
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from peftsweep.config.schema import HparamsConfig, ParallelConfig
from peftsweep.errors import PeftsweepError
from peftsweep.job.checkpoint import changing_weights, kept_whole
from peftsweep.job.loop import LoopCallbacks, TrainingState, build_scheduler, train
from peftsweep.methods.attach import AttachedMethod, attach_method, build_optimizer, calibration_batches_wanted
from peftsweep.methods.catalog import method_files, read_method_file
from peftsweep.methods.known_sharding import TABLE
from peftsweep.modalities.base import BatchLoss
from peftsweep.modalities.order import lengths_of, rows_of
from peftsweep.modalities.text.loss import language_model_loss
from peftsweep.modalities.text.pocket import LLAMA_FOLDER
from peftsweep.modalities.wrapped import base_of, divisible_blocks
from peftsweep.ranks import world
from peftsweep.ranks.sharding import make_alike, shard

HPARAMS = HparamsConfig(max_steps=20, gradient_accumulation=2, scheduler="constant", warmup_fraction=0.0, eval_every=0)
LIMIT_SECONDS = 1200
ROWS = 5  # of a batch: no number of ranks that is tested divides it
CPU = torch.device("cpu")


class Words:
    """The training side of a task, on random words."""

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> BatchLoss:
        return language_model_loss(model, **batch, fused=False)

    def targets(self, batch: Mapping[str, Tensor]) -> int:
        return int((batch["labels"][:, 1:] != -100).sum())

    def tokens(self, batch: Mapping[str, Tensor]) -> int:
        return sum(lengths_of(batch))

    def lengths(self, batch: Mapping[str, Tensor]) -> list[int]:
        return lengths_of(batch)

    def rows(self, batch: Mapping[str, Tensor], which: Sequence[int]) -> Mapping[str, Tensor]:
        return rows_of(batch, which)


def words(seed: int, vocabulary: int, rows: int = ROWS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 24, (rows, 1), generator=generator)
    mask = (torch.arange(int(lengths.max())) < lengths).long()
    ids = torch.randint(20, vocabulary, mask.shape, generator=generator) * mask
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def attach(name: str, base: nn.Module, tokenizer: Any, steps: int) -> AttachedMethod:
    method = read_method_file(method_files()[name])
    wanted = min(calibration_batches_wanted(method), 1)
    set_seed(0)
    attached = attach_method(
        copy.deepcopy(base),
        method,
        total_steps=steps,
        tokenizer=tokenizer,
        calibration_batches=[words(number, base.config.vocab_size, 4 * ROWS) for number in range(wanted)],
    )
    make_alike(list(changing_weights(attached.model).values()))
    return attached


def losses_of(name: str, attached: AttachedMethod, steps: int) -> list[float]:
    method, losses = read_method_file(method_files()[name]), []
    optimizer = build_optimizer(attached, "AdamW", lr=method.lr, weight_decay=0.1)
    state = TrainingState(optimizer, build_scheduler(optimizer, "constant", steps, 0.0))
    vocabulary = base_of(attached.model).config.vocab_size
    batches = (words(seed, vocabulary) for seed in itertools.count())
    callbacks = LoopCallbacks(
        report=lambda step, metrics: losses.extend([metrics["train/loss"]] if "train/loss" in metrics else []),
        after_step=lambda step: attached.hook.after_step(attached.model, step),
        own_loss=lambda: attached.hook.own_loss(attached.model),
    )
    set_seed(0)
    attached.model.eval()  # without dropout: the rows of two ranks would lose other parts
    attached.model.train = lambda mode=True: attached.model
    train(attached.model, Words(), batches, state, replace(HPARAMS, max_steps=steps), callbacks)
    return losses


def reloaded_difference(attached: AttachedMethod, base: nn.Module) -> float:
    """Of the loss, between the model on the ranks and a plain one that has read what was saved."""
    batch = words(100, base.config.vocab_size)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        attached.save(Path(folder))
        here = float(language_model_loss(attached.model, **batch, fused=False).sum)
        if isinstance(attached.model, PeftModel):
            plain: Any = PeftModel.from_pretrained(copy.deepcopy(base), folder)
        else:
            plain = AutoModelForCausalLM.from_pretrained(folder) if world.rank() == 0 else None
        there = here if plain is None else float(language_model_loss(plain.eval(), **batch, fused=False).sum)
    return abs(here - there) / here


def work(rank: int, size: int, port: int, steps: int, file: Path, names: Sequence[str]) -> None:
    """One rank's work; the first one writes what was seen."""
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
    base = AutoModelForCausalLM.from_pretrained(LLAMA_FOLDER, dtype=torch.float32, num_hidden_layers=2)
    base.eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(LLAMA_FOLDER)
    store = world.meeting_point("127.0.0.1", port, size, is_first=False)
    alone: dict[str, list[float]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in names if rank == 0 else ():
        with contextlib.suppress(PeftsweepError):  # told below
            alone[name] = losses_of(name, attach(name, base, tokenizer, steps), steps)
    with world.joined(rank, size, store, CPU):
        for name in names:
            try:
                found[name] = together(name, base, tokenizer, size, steps, alone.get(name, []))
            except PeftsweepError as error:
                found[name] = {"untried": str(error)}
            except Exception as error:
                found[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            if world.any_of("error" in found[name]):
                found[name].setdefault("error", "on another rank")
            if rank == 0:
                file.write_text(json.dumps(found))


def together(
    name: str, base: nn.Module, tokenizer: Any, size: int, steps: int, alone: Sequence[float]
) -> dict[str, float]:
    attached = attach(name, base, tokenizer, steps)
    parallel = ParallelConfig("fsdp", dp_shard_size=size)
    shard(attached.model, divisible_blocks(attached.model), set(kept_whole(attached.model)), parallel, CPU)
    losses = losses_of(name, attached, steps)
    differences = [abs(one - other) / abs(one) for one, other in zip(alone, losses, strict=bool(alone))]
    return {"losses": max(differences, default=0.0), "reloaded": reloaded_difference(attached, base)}


def measure(names: Sequence[str], size: int, steps: int) -> dict[str, dict[str, Any]]:
    """Of each method: the largest relative difference of a step's loss, and that of a model that read what was saved;
    or why there is none."""
    store = world.meeting_point("127.0.0.1", 0, size, is_first=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, "-W", "ignore", __file__, str(size), str(store.port), str(steps), str(file)]
        ranks = [subprocess.Popen([*command, str(rank), *names]) for rank in range(size)]
        try:
            while any(rank.poll() is None for rank in ranks):
                if any(rank.poll() for rank in ranks):
                    raise RuntimeError("a rank died")
                time.sleep(0.1)
        finally:
            for rank in ranks:
                rank.kill()
        found: dict[str, dict[str, Any]] = json.loads(file.read_text())
        return found


def all_methods() -> list[str]:
    return [name for name, path in method_files().items() if "text" in read_method_file(path).modalities]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=HPARAMS.max_steps)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    found = measure(options.names or all_methods(), options.size, options.steps)
    if options.write:
        found = dict(sorted((json.loads(TABLE.read_text(encoding="utf-8")) | found).items()))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(seen)}" for name, seen in found.items())
    print(f"{{\n{lines}\n}}")
    if options.write:
        TABLE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].isdecimal():
        numbers, file, rank, names = sys.argv[1:4], sys.argv[4], sys.argv[5], sys.argv[6:]
        work(int(rank), *map(int, numbers), Path(file), names)
    else:
        main()
