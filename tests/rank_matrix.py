"""Every method on the embedded language model, alone and on several ranks: `python rank_matrix.py <rank> <size> <port>
<file> <method> ...`. The first rank writes what it saw."""

from __future__ import annotations

import copy
import faulthandler
import itertools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from peftsweep.config.schema import HparamsConfig, ParallelConfig
from peftsweep.errors import PeftsweepError
from peftsweep.job.checkpoint import changing_weights
from peftsweep.job.loop import LoopCallbacks, TrainingState, build_scheduler, train
from peftsweep.methods.attach import AttachedMethod, attach_method, build_optimizer, calibration_batches_wanted
from peftsweep.methods.catalog import method_files, read_method_file
from peftsweep.modalities.base import BatchLoss
from peftsweep.modalities.order import lengths_of, rows_of
from peftsweep.modalities.text.loss import language_model_loss
from peftsweep.modalities.text.pocket import LLAMA_FOLDER
from peftsweep.modalities.wrapped import base_of, repeated_blocks
from peftsweep.ranks import world
from peftsweep.ranks.sharding import make_alike, shard

HPARAMS = HparamsConfig(max_steps=4, gradient_accumulation=2, scheduler="constant", warmup_fraction=0.0, eval_every=0)
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


def words(seed: int, vocabulary: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 24, (ROWS, 1), generator=generator)
    mask = (torch.arange(int(lengths.max())) < lengths).long()
    ids = torch.randint(20, vocabulary, mask.shape, generator=generator) * mask
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def attach(name: str, base: nn.Module, tokenizer: Any) -> AttachedMethod:
    method = read_method_file(method_files()[name])
    wanted = min(calibration_batches_wanted(method), 1)
    set_seed(0)
    attached = attach_method(
        copy.deepcopy(base),
        method,
        total_steps=HPARAMS.max_steps,
        tokenizer=tokenizer,
        calibration_batches=[words(number, base.config.vocab_size) for number in range(wanted)],
    )
    make_alike(list(changing_weights(attached.model).values()))
    return attached


def losses_of(name: str, attached: AttachedMethod) -> list[float]:
    method, losses = read_method_file(method_files()[name]), []
    optimizer = build_optimizer(attached, "AdamW", lr=method.lr, weight_decay=0.1)
    state = TrainingState(optimizer, build_scheduler(optimizer, "constant", HPARAMS.max_steps, 0.0))
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
    train(attached.model, Words(), batches, state, HPARAMS, callbacks)
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


def main(rank: int, size: int, port: int, file: Path, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(400, exit=True)
    base = AutoModelForCausalLM.from_pretrained(LLAMA_FOLDER, dtype=torch.float32, num_hidden_layers=2)
    base.eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(LLAMA_FOLDER)
    found: dict[str, Any] = {}
    if rank == 0:
        for name in names:
            try:
                found[name] = {"alone": losses_of(name, attach(name, base, tokenizer))}
            except PeftsweepError as error:
                found[name] = {"refused": str(error)}
    store = dist.TCPStore("127.0.0.1", port, size, is_master=False)
    with world.joined(rank, size, store, CPU):
        for name in names:
            try:
                attached = attach(name, base, tokenizer)
            except PeftsweepError:
                continue
            is_adapter = read_method_file(method_files()[name]).peft_type is not None
            own = changing_weights(attached.model)
            kept = {weight for key, weight in attached.model.named_parameters() if is_adapter and key in own}
            try:
                parallel = ParallelConfig("fsdp", dp_shard_size=size)
                shard(list(repeated_blocks(attached.model)), kept, parallel, CPU)
                together = losses_of(name, attached)
                seen = {"together": together, "reloaded": reloaded_difference(attached, base)}
            except Exception as error:
                seen = {"error": f"{type(error).__name__}: {error}"}
            found.setdefault(name, {}).update(seen)
            if world.added_up("error" in seen)[0]:
                found[name].setdefault("error", "on another rank")
            if rank == 0:
                file.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
