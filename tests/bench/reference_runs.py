"""One run of bench_reference.py, theirs or ours, in a process of its own:

    python reference_runs.py <theirs or ours> <work folder> <folder of this run> <perf_counter at its start>

Neither is changed, both are timed: functions that they find by a name of a module are exchanged for the same ones under
a stopwatch. Theirs is adapted beside that, in this process, where it asks for what may not be there: CUDA, the hub,
bitsandbytes, a git checkout of peft, Python 3.12.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from peftsweep.memory.meters import HostMemoryMeter

EXPERIMENT = "experiments/lora/llama-3.2-3B-rank32"  # in their folder, and with our settings in the work folder
OURS = "job"  # folder of our job in that of its run
Settings = dict[str, Any]


class Stopwatch:
    """Seconds of phases, and of steps without the phases that fall into them."""

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = {}
        self.first_step = 0.0  # on the clock that all processes of a machine share
        self.answer_tokens = 0  # of the answers that were decoded last
        self._apart = 0.0  # seconds in phases so far
        self._depth = 0
        self._marks: list[float] = []

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            self._depth += 1
            began = time.perf_counter()
            result = function(*arguments, **named)
            seconds = time.perf_counter() - began
            self._depth -= 1
            self.phases.setdefault(phase, []).append(seconds)
            self._apart += 0 if self._depth else seconds
            return result

        return run

    def mark(self) -> None:
        """A step begins here, and the one before it ends."""
        if not self._depth:  # their progress bar also counts batches of test questions
            self.first_step = self.first_step or time.perf_counter()
            self._marks.append(time.perf_counter() - self._apart)

    def marked(self, steps: Iterator[Any]) -> Iterator[Any]:
        """A step begins when its number, or its batch, is asked for."""
        while True:
            self.mark()
            try:
                step = next(steps)
            except StopIteration:
                return
            yield step

    def step_seconds(self) -> list[float]:
        return [end - start for start, end in zip(self._marks, self._marks[1:], strict=False)]

    def seconds(self, phase: str) -> float:
        return sum(self.phases.get(phase, []))


# Theirs ------------------------------------------------------------------------------------------------------------


def run_theirs(settings: Settings, work: Path, watch: Stopwatch) -> dict[str, Any]:
    import torch

    sys.dont_write_bytecode = True  # nothing is left in their folder
    sys.path.insert(0, settings["script"])
    read_files_for_the_hub(work)
    run = import_script(Path(settings["script"]), settings["device"])
    decoding: list[str] = []
    found: dict[str, Any] = {}
    run.BUCKET_FACTOR = settings["bucket_batches"]
    run.print_verbose = lambda *arguments, **named: None  # which they define where they read the command line
    run.get_peft_branch = lambda: "none"
    run.get_base_model_info = run.get_dataset_info = lambda name: None  # questions to the hub
    run.log_results = lambda **results: found.update(results)  # writes into their folder
    run.calculate_mean_per_token_loss = watch.timed("forgetting", run.calculate_mean_per_token_loss)
    run.evaluate = partial(answer_anew, watch.timed("answers", run.evaluate), watch)
    run.get_model = partial(load_counting_answers, run.get_model, watch, decoding)
    run.tqdm = marking_bar(run.tqdm, watch)
    run.main(path_experiment=str(work / EXPERIMENT), experiment_name="lora", clean=True, bucket_name=None)
    trained = found["train_result"]
    if trained.status.value != "success":
        raise SystemExit(f"Their run was {trained.status.value}: {trained.error_msg}")
    *validations, test = watch.phases["answers"]
    last = trained.metrics[-1]
    return {
        "validation": sum(validations),
        "test answers": test,
        "reserved_bytes": torch.cuda.max_memory_reserved() if settings["device"] == "cuda" else 0,
        "train_reserved_bytes": max(trained.accelerator_memory_reserved_log),
        "score": last["test accuracy"],
        "loss": statistics.fmean(trained.losses),
        "forgetting_nats": last["forgetting"],
        "train_tokens": last["train total tokens"],
        "trainable_params": trained.num_trainable_params,
        "decoding": decoding[0],
    }


def read_files_for_the_hub(work: Path) -> None:
    """Their data sets are the files of the work folder. Must come before their modules, which import the function."""
    import datasets

    gsm8k = {"train": "valid.jsonl", "test": "test.jsonl"}  # validation rows are of GSM8K's training half there
    names = {
        "meta-math/MetaMathQA": {"train": "train-in-order.jsonl"},
        "openai/gsm8k": gsm8k,
        "HuggingFaceFW/finewiki": {"train": "general.jsonl"},
    }
    from_json = partial(datasets.load_dataset, "json")

    def load_dataset(name: str, config: str | None = None, **options: Any) -> Any:
        return from_json(data_files={split: str(work / file) for split, file in names[name].items()}, **options)

    datasets.load_dataset = load_dataset


def import_script(script: Path, device: str) -> Any:
    """Their run.py as a module, for `device`, without its assertion that the base model's loss on general text is what
    it is of Llama on Wikipedia."""
    import peft.optimizers
    import peft.utils
    import torch
    import transformers

    infer_device = peft.utils.infer_device
    if device == "cpu":
        imitate_accelerator(torch.cpu)
        peft.utils.infer_device = lambda: "cuda"  # utils refuses to be imported otherwise
    missing = importlib.util.find_spec("bitsandbytes") is None
    if missing:  # only its version is asked for; gone again before peft or transformers look for it
        sys.modules["bitsandbytes"] = ModuleType("bitsandbytes")
    import utils  # theirs

    if missing:
        del sys.modules["bitsandbytes"]
    peft.utils.infer_device = utils.infer_device = (lambda: "cpu") if device == "cpu" else infer_device
    utils.device = device
    if sys.version_info < (3, 12):  # an argument of theirs is new there, and their adapter would not be saved
        utils.tempfile = SimpleNamespace(TemporaryDirectory=temporary_directory)
    # float32 is what they leave to the default; since version 5 that is whatever the checkpoint has.
    load = partial(transformers.AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    utils.AutoModelForCausalLM = SimpleNamespace(from_pretrained=load)
    run: Any = ModuleType("run")
    path = script / "run.py"
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec", optimize=1), vars(run))
    return run


def temporary_directory(*, delete: bool, **named: Any) -> Any:
    return tempfile.TemporaryDirectory(**named)


def imitate_accelerator(cpu: Any) -> None:
    """What they ask torch.cuda for, answered by torch.cpu: no byte is ever held."""
    for name in ("memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cpu, name, lambda: 0)
    for name in ("reset_peak_memory_stats", "empty_cache"):
        setattr(cpu, name, lambda: None)
    cpu.manual_seed_all = lambda seed: None


def answer_anew(evaluate: Callable[..., Any], watch: Stopwatch, **named: Any) -> Any:
    watch.answer_tokens = 0
    return evaluate(**named)


def load_counting_answers(get_model: Callable[..., Any], watch: Stopwatch, decoding: list[str], **named: Any) -> Any:
    """Their model, which counts the tokens of its answers, and tells how it chooses them."""
    model = get_model(**named)
    generate, config = model.generate, model.generation_config
    sampled = f"sampled at temperature {config.temperature}, top_p {config.top_p}, top_k {config.top_k}"
    decoding.append(sampled if config.do_sample else "greedy")

    def counted(**inputs: Any) -> Any:
        outputs = generate(**inputs)
        new = outputs[:, inputs["input_ids"].shape[1] :]
        watch.answer_tokens += int((new != inputs["generation_config"].pad_token_id).sum())
        return outputs

    model.generate = counted
    return model


def marking_bar(bar: Any, watch: Stopwatch) -> Any:
    """Their progress bar, at whose steps a stopwatch is read."""

    class Bar(bar):
        def __iter__(self) -> Iterator[Any]:
            return watch.marked(super().__iter__())

    return Bar


# Ours --------------------------------------------------------------------------------------------------------------


def run_ours(settings: Settings, work: Path, watch: Stopwatch) -> dict[str, Any]:
    from peftsweep.__main__ import main
    from peftsweep.job import run
    from peftsweep.modalities.text import task

    run.train = partial(train_marked, run.train, watch)
    task.decode_greedily = partial(decode_counting, watch.timed("answers", task.decode_greedily), watch)
    for method, phase in (("measure_retention", "forgetting"), ("validate", "validation"), ("evaluate", "test")):
        setattr(task.TextTask, method, watch.timed(phase, getattr(task.TextTask, method)))
    if code := main(our_overrides(settings, work)):
        raise SystemExit(code)
    metrics = json.loads(Path(OURS, "result.json").read_text(encoding="utf-8"))["metrics"]
    history = map(json.loads, Path(OURS, "history.jsonl").read_text(encoding="utf-8").splitlines())
    return {
        "validation": watch.seconds("validation"),
        "test answers": watch.seconds("answers"),
        "test loss": watch.seconds("test") - watch.seconds("answers"),
        "reserved_bytes": metrics.get("memory/job_peak_reserved_bytes", 0),
        "train_reserved_bytes": metrics.get("memory/train_peak_reserved_bytes", 0),
        "score": metrics["test/accuracy"],
        "loss": statistics.fmean(row["train/loss"] for row in history if "train/loss" in row),
        "forgetting_nats": metrics["forgetting_nats"],
        "train_tokens": metrics["train/tokens"],
        "trainable_params": metrics["adapter/trainable_params"],
        "decoding": "greedy",
    }


def our_overrides(settings: Settings, work: Path) -> list[str]:
    """The experiment's folder tells the method and how to train; this what it leaves to the script, and what theirs
    doesn't do: score the base, plan memory, track."""
    data = [f"task.{split}_files={work / f'{split}.jsonl'}" for split in ("train", "valid", "test")]
    return [
        *("task=metamath", "method=from_file", f"method.path={work / EXPERIMENT}"),
        *("model=hf", f"model.id={settings['model']}", f"model.dtype={settings['dtype']}"),
        *(*data, f"task.valid_rows={settings['valid_rows']}", f"task.max_new_tokens={settings['max_new_tokens']}"),
        *(f"task.general_text={work / 'general.jsonl'}", f"task.general_rows={settings['general_rows']}"),
        f"hparams.bucket_batches={settings['bucket_batches']}",
        *("task.base_score=false", "plan=false", "tracking=none"),
        *(f"device={settings['device']}", "cache=cache", f"hydra.run.dir={OURS}", *settings["ours"]),
    ]


def train_marked(
    train: Callable[..., None], watch: Stopwatch, model: Any, task: Any, batches: Iterator[Any], *others: Any
) -> None:
    train(model, task, watch.marked(batches), *others)
    watch.mark()


def decode_counting(decode: Callable[..., Any], watch: Stopwatch, *arguments: Any, **named: Any) -> Any:
    decoded = decode(*arguments, **named)
    watch.answer_tokens = sum(map(len, decoded.generations))
    return decoded


# Both --------------------------------------------------------------------------------------------------------------


def main() -> None:
    side, work, folder, began = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
    meter, watch = HostMemoryMeter(), Stopwatch()
    settings = json.loads((work / "settings.json").read_text(encoding="utf-8"))
    os.chdir(folder)
    found = {"theirs": run_theirs, "ours": run_ours}[side](settings, work, watch)
    before, *_ = watch.phases["forgetting"]  # of the base model, before the first step on both sides
    found |= {
        "start": watch.first_step - began - before,
        "forgetting": watch.seconds("forgetting"),
        "steps": watch.step_seconds(),
        "answer_tokens": watch.answer_tokens,
        "host_bytes": meter.peak_bytes(),
    }
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
