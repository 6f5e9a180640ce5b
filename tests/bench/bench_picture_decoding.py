"""How much faster than padded batches of `generate` is `decode_greedily` on questions about pictures?

    python tests/bench/bench_picture_decoding.py

100 embedded questions about 25 pictures on the embedded model, in one process, both ways in turn; only the ratio means
something. The base model answers in whole sentences of different length; one that has learnt the task (`--adapter`)
with a word, so that no batch waits for a long one. Ours looks at each picture once, anew in every round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from transformers import GenerationConfig

from peftsweep.config.schema import EMBEDDED
from peftsweep.modalities.text.decoding import decode_greedily
from peftsweep.modalities.text.tokens import PromptFormat
from peftsweep.modalities.vision_language.loader import load_vision_language_model
from peftsweep.modalities.vision_language.pocket import VLM_FOLDER
from peftsweep.modalities.vision_language.reader import PictureReader
from peftsweep.modalities.vision_language.rows import build_source
from peftsweep.modalities.vision_language.settings import VlmConfig, VqaConfig
from peftsweep.modalities.vision_language.tokens import PictureTokenRows, tokenize_questions


def generate_in_padded_batches(
    model: Any, tokenizer: Any, tokens: PictureTokenRows, batch_size: int, max_new_tokens: int
) -> list[list[int]]:
    """Batches in order, padded on the left, each running until its longest answer ends."""
    end = tokenizer.eos_token_id
    config = GenerationConfig(
        do_sample=False, eos_token_id=end, pad_token_id=tokenizer.pad_token_id, max_new_tokens=max_new_tokens
    )
    generations = []
    for first in range(0, len(tokens), batch_size):
        rows = list(range(first, min(first + batch_size, len(tokens))))
        prompts = [torch.tensor(tokens.prompt(row)) for row in rows]
        width = max(map(len, prompts))
        ids = torch.stack([functional.pad(p, (width - len(p), 0), value=tokenizer.pad_token_id) for p in prompts])
        mask = torch.stack([functional.pad(torch.ones_like(p), (width - len(p), 0)) for p in prompts])
        given = tokens.given(rows, ids)
        output = model.generate(input_ids=ids, attention_mask=mask, **given, generation_config=config)
        generations += [_until(row, end) for row in output[:, width:].tolist()]
    return generations


def _until(generated: list[int], end: int) -> list[int]:
    return generated[: generated.index(end)] if end in generated else generated


def measured(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time, which a busy machine changes little, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def compare(model: nn.Module, tokenizer: Any, tokens: PictureTokenRows, batch_size: int, rounds: int) -> float:
    """Print a row, and answer the ratio of the medians: time of padded batches over ours."""
    most = 32
    prompts = [tokens.prompt(row) for row in range(len(tokens))]
    once = replace(tokens, reader=PictureReader(tokens.reader.processor))
    sizes = {"batch_size": batch_size, "max_new_tokens": most}

    def ours() -> Sequence[list[int]]:
        once.reader.look_with(None)  # forget
        once.reader.look_with(model)
        return decode_greedily(model, tokenizer, prompts, given=once.given, **sizes).generations

    def theirs() -> Sequence[list[int]]:
        return generate_in_padded_batches(model, tokenizer, tokens, **sizes)

    (_, mine), (_, padded) = measured(ours), measured(theirs)  # first calls cost more, on both sides
    pairs = [(measured(theirs)[0], measured(ours)[0]) for _ in range(rounds)]
    their_seconds, our_seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
    same = sum(one == other for one, other in zip(mine, padded, strict=True))
    lengths = sorted(map(len, mine))
    print(
        f"{batch_size:>10} {lengths[len(lengths) // 2]:>8} {lengths[-1]:>8} {their_seconds:>10.2f} "
        f"{our_seconds:>8.2f} {their_seconds / our_seconds:>6.2f} {same:>9}/{len(mine)}"
    )
    return their_seconds / our_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[10, 25, 50])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, default=VLM_FOLDER)
    parser.add_argument("--adapter", help="folder of an adapter for the embedded model, from a job")
    arguments = parser.parse_args()
    spec = VlmConfig("pocket-vlm", "vision_language", EMBEDDED, dtype="float32")
    base = load_vision_language_model(spec, str(arguments.model), torch.device("cpu"))
    model = PeftModel.from_pretrained(base.model, arguments.adapter).eval() if arguments.adapter else base.model
    rows = build_source(VqaConfig(name="vqa"), embedded_model=True).read("test")[: arguments.questions]
    tokens = tokenize_questions(rows, PromptFormat("{prompt}", 128, False), PictureReader(base.processor))
    print(f"{len(rows)} questions, torch {torch.__version__}, {torch.get_num_threads()} threads, one process")
    print("batch_size   median  longest   padded s   ours s  ratio  same answers")
    for batch_size in arguments.batch_sizes:
        compare(model, base.tokenizer, tokens, batch_size, arguments.rounds)


if __name__ == "__main__":
    main()
