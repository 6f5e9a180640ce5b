"""Small jobs, run as any other: do methods train, does memory keep to its plan, what do compilation and the fused loss
bring, does a model answer.

On a GPU the model is a Llama of 110 million random weights, large enough for its plan to mean something; on a CPU it is
the embedded one.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peftsweep.checkup.findings import Finding, Mark
from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.errors import PeftsweepError
from peftsweep.job.display import Display
from peftsweep.job.plan.planner import RANGE_ABOVE, RANGE_BELOW
from peftsweep.job.run import run_job
from peftsweep.modalities.loading import base_location
from peftsweep.records.results import JobResult

METHODS = {"cuda": ("lora", "oft", "lily", "ia3", "prompt-tuning", "full"), "cpu": ("lora",)}
STEPS = {"cuda": 12, "cpu": 4}
LOSSES_ALIKE = {"cuda": 2e-2, "cpu": 1e-4}  # relative: of the last step, by the fused and by the plain loss
QUICK = (
    "task=metamath",
    "task.source=embedded",
    "hparams.batch_size=4",
    "hparams.eval_every=0",
    "task.train_rows=64",
    "task.valid_rows=4",
    "task.test_rows=8",
    "task.max_new_tokens=16",
    "task.general_rows=0",
    "task.base_score=false",
    "tracking=none",
    "save_adapter=false",
)
PLANNED, MEASURED = "plan/train_peak_bytes", "memory/train_peak_reserved_bytes"
STEP_SECONDS = "time/step_median_seconds"


@dataclass(frozen=True)
class Bench:
    """Where trials run. model: settings that name it."""

    folder: Path
    model: tuple[str, ...]
    device: torch.device

    @property
    def kind(self) -> str:
        """Of device, as METHODS, STEPS and LOSSES_ALIKE know it."""
        return "cuda" if self.device.type == "cuda" else "cpu"

    def run(self, *settings: str) -> JobResult:
        steps = f"hparams.max_steps={STEPS[self.kind]}"
        asked = [*self.model, *QUICK, steps, f"device={self.device}", f"cache={self.folder / 'cache'}", *settings]
        gc.collect()
        name = "-".join(settings).replace("/", "_").replace("=", "-")
        return run_job(build_config(compose_config(asked)), self.folder / name, display=Display(Console(quiet=True)))


def open_bench(folder: Path, device: torch.device) -> Bench:
    if device.type != "cuda":
        return Bench(folder, ("model=pocket-llama",), device)
    torch.manual_seed(0)
    embedded = base_location(build_config(compose_config(["model=pocket-llama"])).model)
    tokenizer, target = AutoTokenizer.from_pretrained(embedded), folder / "model"
    sizes: dict[str, Any] = {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
    }
    config = LlamaConfig(vocab_size=32_000, num_key_value_heads=4, tie_word_embeddings=False, **sizes)
    config.update({"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id})
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return Bench(folder, ("model=hf", f"model.id={target}"), device)


def find_trials(bench: Bench) -> Iterator[Finding]:
    """A finding for each; one that fails doesn't keep the others from being tried."""
    for method in METHODS[bench.kind]:
        yield from _found(f"method {method}", lambda method=method: _train(bench, method))  # type: ignore[misc]
    yield from _found("fused loss", lambda: _fused(bench))
    if bench.kind == "cuda":
        yield from _found("compilation", lambda: _compiled(bench))


def _found(about: str, look: Callable[[], Sequence[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except PeftsweepError as error:
        yield Finding(about, Mark.FAULT, str(error.problems[0]))
    except Exception as error:  # whatever a driver brings
        yield Finding(about, Mark.FAULT, f"{type(error).__name__}: {error}")


def _train(bench: Bench, method: str) -> list[Finding]:
    result = bench.run(f"method={method}")
    metrics = result.metrics
    said = f"trained {result.steps} steps, {1000 * metrics[STEP_SECONDS]:.0f} ms each, and answered 8 questions"
    is_finite = math.isfinite(metrics.get("test/loss", math.nan))
    found = [Finding(f"method {method}", Mark.OK if is_finite else Mark.FAULT, said, measured=dict(metrics))]
    if PLANNED in metrics and MEASURED in metrics:
        planned, measured = metrics[PLANNED], metrics[MEASURED]
        holds = planned * (1 - RANGE_BELOW) <= measured <= planned * (1 + RANGE_ABOVE)
        off = f"{measured / planned - 1:+.1%}"
        said = f"{measured / 2**20:.0f} MiB at the peak, {planned / 2**20:.0f} were planned ({off})"
        fix = "Tell us, with this report." * (not holds)
        found.append(Finding(f"plan of {method}", Mark.OK if holds else Mark.HEED, said, fix))
    return found


def _fused(bench: Bench) -> list[Finding]:
    fused, plain = (bench.run("method=lora", f"hparams.fused_loss={fused}") for fused in ("true", "false"))
    ours, theirs = (result.metrics["train/loss"] for result in (fused, plain))
    alike = math.isclose(ours, theirs, rel_tol=LOSSES_ALIKE[bench.kind])
    return [
        Finding(
            "fused loss",
            Mark.OK if alike else Mark.FAULT,
            f"{ours:.5f} after the last step, {theirs:.5f} by whole logits; a step takes {_ratio(fused, plain):.2f} "
            "of the time",
        )
    ]


def _compiled(bench: Bench) -> list[Finding]:
    eager, compiled = (bench.run("method=lora", "seed=1", f"hparams.compile={on}") for on in ("false", "true"))
    said = f"a step takes {_ratio(compiled, eager):.2f} of the time, once compiled"
    return [Finding("compilation", Mark.OK, said)]


def _ratio(one: JobResult, other: JobResult) -> float:
    return one.metrics[STEP_SECONDS] / other.metrics[STEP_SECONDS]
