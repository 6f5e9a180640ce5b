"""Pre-train pocket-llama, the embedded causal language model: `make pocket-models`, about 25 minutes on 2 cores.

Seeded, and reproducible on one machine; another CPU rounds differently, so the shipped weights are the reference.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from peftsweep.modalities.pretraining import pretrain
from peftsweep.modalities.text.pocket import LLAMA_FOLDER
from peftsweep.modalities.text_world import make_problems, pretraining_documents

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
# Turns in the words of the task's template, so that chats can be tried offline.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}Answer: {{ message.content }}{{ eos_token }}\n"
    "{% elif message.role == 'user' %}Question: {{ message.content }}\n"
    "{% else %}{{ message.content }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
VOCABULARY = 832
PEAK_RATE = 2e-3
ROW_TOKENS = 256  # documents are packed into rows of this length


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the text world; every digit is a token of its own, so that arithmetic is
    compositional."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The task's own words are part of the vocabulary, as they are of any real tokenizer; the model never sees them in
    # this order.
    task_words = ["Question: Think step by step.\nAnswer: The answer is:"] * 200
    documents = itertools.islice(pretraining_documents(seed=1), 20_000)
    tokenizer.train_from_iterator(itertools.chain(documents, task_words), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    built = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=END, model_max_length=1024
    )
    built.chat_template = CHAT_TEMPLATE
    return built


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def packed_rows(tokenizer: PreTrainedTokenizerFast, batch_size: int) -> Iterator[torch.Tensor]:
    """Endless batches of token ids (batch_size, ROW_TOKENS), documents following each other without padding."""
    documents = pretraining_documents(seed=0)
    buffer: list[int] = []
    while True:
        while len(buffer) < batch_size * ROW_TOKENS:
            texts = list(itertools.islice(documents, 256))
            for ids in tokenizer(texts)["input_ids"]:
                buffer += [*ids, tokenizer.eos_token_id]
        rows, buffer = buffer[: batch_size * ROW_TOKENS], buffer[batch_size * ROW_TOKENS :]
        yield torch.tensor(rows).view(batch_size, ROW_TOKENS)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, batch_size: int) -> None:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))
    # Nearly twice as fast here: most of the time of so small a model goes into elementwise work.
    compiled, batches = torch.compile(model), packed_rows(tokenizer, batch_size)

    def next_loss() -> torch.Tensor:
        rows = next(batches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return cast(torch.Tensor, compiled(input_ids=rows, labels=rows).loss)

    pretrain("llama", model, [optimizer], steps, next_loss, clip=1.0)


@torch.inference_mode()
def worked_accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 100) -> float:
    """Share of unseen stories that the base model works out right in the form of its own pre-training."""
    right = 0
    for problem in make_problems("valid", count, seed=1):
        prompt, expected = problem.worked.split(" Working:")
        ids = tokenizer(prompt + " Working:", return_tensors="pt")["input_ids"]
        output = model.generate(ids, max_new_tokens=60, do_sample=False, pad_token_id=tokenizer.eos_token_id)  # type: ignore[misc]
        right += str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip() == expected.strip()
    return right / count


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1800, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=32, help=f"rows of {ROW_TOKENS} tokens per step")
    parser.add_argument("--folder", type=Path, default=LLAMA_FOLDER, help="where weights and tokenizer are written")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    train(model, tokenizer, options.steps, options.batch_size)
    cast(nn.Module, model).to(torch.bfloat16)
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)
    model.float()
    print(f"worked stories right: {worked_accuracy(model, tokenizer):.0%}")


if __name__ == "__main__":
    main(sys.argv[1:])
