"""The PEFT library's own benchmark script against our job: the same model, rows and steps, on the same device.

    PEFTSWEEP_REFERENCE=<method_comparison folder> python tests/bench/bench_reference.py
    ... --model meta-llama/Llama-3.2-3B --steps 200 --questions 200 --valid-rows 50 --general-rows 100    # on a GPU

MetaMathQA/run.py and a job of ours read one experiment folder: their LoRA of rank 32 with their settings, and what is
asked for here. Rows are GSM8K's where PEFTSWEEP_GSM8K names a folder with its train.jsonl and test.jsonl, else the
embedded arithmetic. Each run is a process of its own, theirs and ours in turn; see reference_runs.py for how theirs is
adapted while it runs. Told are medians over the pairs, and ours over theirs in each.

Without --model it is a Llama of SmolLM2-135M's shape with random weights and the embedded tokenizer. Steps, memory and
decoding cost what they cost at a real shape (30 layers, 49,152 words), where the embedded model of 3 million parameters
would mostly measure Python. The price: answers run to their limit, where ours gains nothing by letting the finished
leave, and the score is 0. For a score that means something, on the same mathematics:
--model peftsweep/modalities/text/pocket/llama --lr 1e-3 --steps 200
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from reference_runs import EXPERIMENT

SIDES = ("theirs", "ours")
MOST_CHARACTERS = 1300  # of a training row; both drop longer ones
RUNS = Path(__file__).with_name("reference_runs.py")
Found = dict[str, Any]
Rows = list[tuple[str, str]]  # question and answer


# What both are given -----------------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace, script: Path, work: Path) -> None:
    options.model = str(model_folder(options, work))
    options.script = str(script)
    # Buckets that the steps fill, so that no bucket is left half used: theirs would take its longest rows.
    options.bucket_batches = max(size for size in range(1, 21) if options.steps % size == 0)
    write_experiment(options, script, work / EXPERIMENT)
    write_data(options, work)
    (work / "settings.json").write_text(json.dumps(vars(options)), encoding="utf-8")


def model_folder(options: argparse.Namespace, work: Path) -> Path:
    """A local folder, whatever was asked for, so that neither side asks the hub while it is timed."""
    if options.model is None:
        return random_llama(work / "model", options.dtype)
    if not Path(options.model).is_dir():
        from huggingface_hub import snapshot_download

        wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer*"]
        options.model = snapshot_download(options.model, allow_patterns=wanted, ignore_patterns="original/*")
    for path in Path(options.model).glob("*.safetensors"):  # the first run must not wait for the disk alone
        with path.open("rb") as weights:
            while weights.read(2**24):
                pass
    return Path(options.model).resolve()


def random_llama(folder: Path, dtype: str) -> Path:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from peftsweep.modalities.loading import quiet
    from peftsweep.modalities.text.pocket import LLAMA_FOLDER

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(LLAMA_FOLDER)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with quiet():
        LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_experiment(options: argparse.Namespace, script: Path, folder: Path) -> None:
    """Their experiment with every setting spelled out, so that neither side falls back on defaults of its own."""
    shutil.copytree(script / EXPERIMENT, folder)
    training = json.loads((script / "default_training_params.json").read_text(encoding="utf-8"))
    own = folder / "training_params.json"
    training |= json.loads(own.read_text(encoding="utf-8")) if own.exists() else {}
    training |= {
        "model_id": options.model,
        "dtype": options.dtype,
        "max_steps": options.steps,
        "eval_steps": options.steps,  # one validation, at the end
        "batch_size": options.batch_size,
        "batch_size_eval": options.eval_batch_size,
        "optimizer_kwargs": training["optimizer_kwargs"] | {"lr": options.lr},
        "generation_kwargs": {"max_new_tokens": options.max_new_tokens},  # and not, as there, 800 with the question
    }
    own.write_text(json.dumps(training), encoding="utf-8")


def write_data(options: argparse.Namespace, work: Path) -> None:
    from peftsweep.modalities.order import batch_order

    count = options.steps * options.batch_size  # every row once
    train, valid, test = read_rows(options, count)
    for name, rows in (("valid", valid), ("test", test)):
        write_lines(work / f"{name}.jsonl", ({"question": question, "answer": answer} for question, answer in rows))
    lines = [{"query": query, "response": response} for query, response in train]
    write_lines(work / "train.jsonl", lines)
    # Theirs reads a file in its order, ours shuffles: in the order that ours comes to, both form the same buckets.
    order = chain.from_iterable(
        islice(batch_order([0] * count, options.batch_size, options.bucket_batches, seed=0), options.steps)
    )
    others = {"type": "", "original_question": ""}  # columns that theirs takes away
    write_lines(work / "train-in-order.jsonl", (lines[row] | others for row in order))
    write_lines(work / "general.jsonl", ({"text": text} for text in general_texts(options.general_rows)))


def read_rows(options: argparse.Namespace, count: int) -> tuple[Rows, Rows, Rows]:
    """Rows for training, for validation, and of the test. Training rows begin anew where there are fewer."""
    from peftsweep.modalities.text_world import make_problems

    folder = os.environ.get("PEFTSWEEP_GSM8K")
    if folder:
        known, test = (read_gsm8k(Path(folder) / f"{split}.jsonl") for split in ("train", "test"))
    else:
        known, test = (
            [(problem.query, problem.response) for problem in make_problems(split, rows)]
            for split, rows in (("train", min(count, 6000) + options.valid_rows), ("test", options.questions))
        )
    short = [row for row in known if len(" ".join(row)) <= MOST_CHARACTERS]
    valid, others = short[: options.valid_rows], short[options.valid_rows :]
    return list(islice(cycle(others), count)), valid, test[: options.questions]


def general_texts(count: int) -> list[str]:
    """Of the world that the rows are from: the embedded model knows no other."""
    from peftsweep.modalities.general import SHIPPED
    from peftsweep.modalities.text_world import general_passages

    if not os.environ.get("PEFTSWEEP_GSM8K"):
        return general_passages(count)
    return [json.loads(line)["text"] for line in SHIPPED.read_text(encoding="utf-8").splitlines()[:count]]


def read_gsm8k(path: Path) -> Rows:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(row["question"], row["answer"]) for row in rows]


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


# The runs ----------------------------------------------------------------------------------------------------------


def run(side: str, work: Path, number: int) -> Found:
    """One run in a process of its own, which finds no cache of an earlier one."""
    folder = work / f"{side}-{number}"
    folder.mkdir()
    began = time.perf_counter()
    command = [sys.executable, str(RUNS), side, str(work), str(folder), str(began)]
    with (folder / "log").open("w", encoding="utf-8") as log:
        environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "datasets")}
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{(folder / 'log').read_text(encoding='utf-8')[-4000:]}")
    found: Found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    told = ("start", "validation", "test answers", "forgetting")
    return found | {"whole": seconds, "rest": seconds - sum(found["steps"]) - sum(found[name] for name in told)}


# What is told ------------------------------------------------------------------------------------------------------

# Name, what of a run, decimals.
COSTS: tuple[tuple[str, Callable[[Found], float], int], ...] = (
    ("whole run, s", lambda found: found["whole"], 1),
    ("what both do (*), s", lambda found: found["whole"] - found["validation"] - found.get("test loss", 0), 1),
    ("  start, model, data, s", lambda found: found["start"], 1),
    ("  training steps, s", lambda found: sum(found["steps"]), 1),
    ("  validation (*), s", lambda found: found["validation"], 1),
    ("  test answers, s", lambda found: found["test answers"], 1),
    ("  forgetting, s", lambda found: found["forgetting"], 1),
    ("  rest, s", lambda found: found["rest"], 1),
    ("a step, median s", lambda found: statistics.median(found["steps"]), 4),
    ("a test answer's token, ms", lambda found: 1000 * found["test answers"] / max(1, found["answer_tokens"]), 3),
    ("host memory, GiB", lambda found: found["host_bytes"] / 2**30, 2),
    ("reserved, run, GiB", lambda found: found["reserved_bytes"] / 2**30, 2),
    ("reserved, training, GiB", lambda found: found["train_reserved_bytes"] / 2**30, 2),
)
# What must agree, or nearly, for the costs to be of the same work.
RESULTS: tuple[tuple[str, str, str], ...] = (
    ("parameters trained", "trainable_params", ",.0f"),
    ("tokens trained on", "train_tokens", ",.0f"),
    ("training loss, mean", "loss", ".4f"),
    ("tokens of test answers", "answer_tokens", ",.0f"),
    ("test accuracy", "score", ".1%"),
    ("forgetting, nats", "forgetting_nats", ".4f"),
)


def told_settings(options: argparse.Namespace, asked: str | None) -> str:
    import torch

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    data = "GSM8K" if os.environ.get("PEFTSWEEP_GSM8K") else "embedded arithmetic"
    return f"""\
{asked or "a Llama of SmolLM2-135M's shape, random weights"}, {options.dtype}; {device}; {versions}
{EXPERIMENT}: rate {options.lr:g}, {options.steps} steps of {options.batch_size} rows of {data}, each row once, \
sorted by length {options.bucket_batches} batches at a time, loss on question and answer
{options.valid_rows} rows for validation, {options.questions} test questions, at most {options.max_new_tokens} tokens \
an answer, {options.eval_batch_size} at a time; forgetting on {options.general_rows} passages
pairs of runs: {options.pairs}{f"; ours also {' '.join(options.ours)}" if options.ours else ""}"""


def told_differences(theirs: Found, ours: Sequence[Found]) -> str:
    test_loss = statistics.median(found["test loss"] for found in ours)
    return f"""\
(*) Validation is not the same work: theirs answers the questions, ours computes the loss of these rows. What both do is
the whole without it and, in ours, without loss, judgement and interval of the test rows. What else differs:
answers      theirs as the checkpoint's generation config says (here: {theirs["decoding"]}), in file order, each batch
             until its longest answer ends; ours greedily, longest questions first, what is finished leaves its batch
rows         theirs without a blank before the answer, and an end token only where a row is padded; ours with both
order        the same buckets of rows; theirs the longest batch of a bucket first, ours shuffled
forgetting   theirs a training batch at a time, ours an evaluation batch, by length
judge        theirs takes 1,200 and 1200 for two numbers, ours for one
left out     of theirs: its result file, questions to the hub, the assertion that Llama's loss on Wikipedia is
             between 1 and 2; of ours: base score, memory plan, MLflow
rest         in ours {test_loss:.1f} s of it are for loss, judgement and interval of the test rows"""


def print_costs(pairs: Sequence[dict[str, Found]]) -> None:
    print(f"{'':<26}{'theirs':>12}{'ours':>12}{'ratio':>8}   lowest to highest")
    for name, of, decimals in COSTS:
        columns = [[of(pair[side]) for pair in pairs] for side in SIDES]
        if not any(columns[0]):  # nothing is reserved on a CPU
            continue
        theirs, ours = map(statistics.median, columns)
        ratios = sorted(mine / other for other, mine in zip(*columns, strict=True))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"{name:<26}{theirs:>12.{decimals}f}{ours:>12.{decimals}f}{statistics.median(ratios):>8.2f}   {spread}")
    for side in SIDES:
        low, middle, high = statistics.quantiles([seconds for pair in pairs for seconds in pair[side]["steps"]], n=4)
        print(f"steps of {side}: median {middle:.4f} s, quartiles {low:.4f} to {high:.4f}")


def print_results(pairs: Sequence[dict[str, Found]]) -> None:
    for name, key, form in RESULTS:
        theirs, ours = (statistics.median(pair[side][key] for pair in pairs) for side in SIDES)
        print(f"{name:<26}{theirs:>12{form}}{ours:>12{form}}")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id; without one, random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="float32 on a CPU, bfloat16 on CUDA")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--valid-rows", type=int, default=20)
    parser.add_argument("--general-rows", type=int, default=20)
    parser.add_argument("--eval-batch-size", type=int, default=50)
    parser.add_argument("--max-new-tokens", type=int, help="100 on a CPU, 300, as theirs, on CUDA")
    parser.add_argument("--ours", nargs="*", default=[], help="overrides of our job alone, plan=true for one")
    options = parser.parse_args(arguments)
    dtype, max_new_tokens = ("bfloat16", 300) if options.device == "cuda" else ("float32", 100)
    options.dtype = options.dtype or dtype
    options.max_new_tokens = options.max_new_tokens or max_new_tokens
    return options


def main() -> None:
    options = parse_options()
    root = os.environ.get("PEFTSWEEP_REFERENCE")
    if not root or not (script := Path(root).resolve() / "MetaMathQA").joinpath("run.py").exists():
        print("PEFTSWEEP_REFERENCE names no copy of method_comparison with MetaMathQA/run.py: nothing to compare with.")
        return
    asked, pairs = options.model, []
    with tempfile.TemporaryDirectory() as folder:
        prepare(options, script, Path(folder))
        print(told_settings(options, asked), flush=True)
        for number in range(1, options.pairs + 1):
            pairs.append({side: run(side, Path(folder), number) for side in SIDES})
            seconds = ", ".join(f"{side} {pairs[-1][side]['whole']:.1f} s" for side in SIDES)
            print(f"pair {number}: {seconds}", flush=True)
    print_costs(pairs)
    print_results(pairs)
    print(told_differences(pairs[0]["theirs"], [pair["ours"] for pair in pairs]))


if __name__ == "__main__":
    main()
