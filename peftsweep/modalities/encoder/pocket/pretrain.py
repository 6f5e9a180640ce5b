"""Pre-train pocket-bert, the embedded encoder, as BERT was, by hidden words and by which texts belong together.

    make pocket-models

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
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerFast

from peftsweep.modalities.encoder.pocket import BERT_FOLDER
from peftsweep.modalities.encoder.pocket.scenes import PEOPLE, WORDS_OF, make_scene, pretraining_rows, restated
from peftsweep.modalities.pretraining import pretrain
from peftsweep.modalities.text_world import split_of

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = 640
SHORT, LONG = 64, 128  # tokens of a row: of a scene, and with general passages; longer ones are cut
LONG_EVERY = 8  # batches
PEAK_RATE = 1.5e-3
# Shares of tokens that are chosen: of a text; and of what is said of it again, of words that a scene doesn't bind, and
# of those that it does. Of the chosen, those that are exchanged for another, and left as they are; the rest is hidden.
CHOSEN, CHOSEN_AGAIN, CHOSEN_BOUND = 0.12, 0.1, 0.45
EXCHANGED, KEPT = 0.25, 0.15


def build_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece trained on the encoder's world; every digit is a token of its own, and every character of ASCII is
    known, so that other texts, and protein sequences, are read too."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=64))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.WordPiece()
    characters = [chr(code) for code in range(33, 127)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIAL, *(f"##{character}" for character in characters if character.isalpha())],
        initial_alphabet=characters,
        show_progress=False,
    )
    rows = (itertools.islice(pretraining_rows(seed=1, passages=passages), 10_000) for passages in (False, True))
    tokenizer.train_from_iterator((f"{text} {pair}" for text, pair, _ in itertools.chain(*rows)), trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        mask_token="[MASK]",
        model_max_length=256,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> BertForPreTraining:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertForPreTraining(config)


def slots_of_tokens(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """(vocabulary,) numbers of the slots that words belong to; 0 for none."""
    slots = torch.zeros(len(tokenizer), dtype=torch.long)
    for number, words in enumerate([PEOPLE, *WORDS_OF.values()], start=1):
        tokens = [cast(int, tokenizer.convert_tokens_to_ids(word)) for word in words]
        slots[[token for token in tokens if token != tokenizer.unk_token_id]] = number
    return slots


def mask(
    ids: Tensor, segments: Tensor, slots: Tensor, tokenizer: PreTrainedTokenizerFast, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(input ids, labels): most of the chosen tokens are hidden, some left, and some exchanged.

    BERT takes any word in exchange, which gives itself away where it stands. One of the same kind makes the model
    compare what is said with what was told.
    """
    special = torch.tensor(tokenizer.all_special_ids)
    kinds = slots[ids]
    share = torch.where(kinds > 0, CHOSEN_BOUND, CHOSEN_AGAIN).where(segments == 1, CHOSEN)
    chosen = (torch.rand(ids.shape, generator=rng) < share) & ~torch.isin(ids, special)
    labels = ids.masked_fill(~chosen, -100)
    other = torch.randint(len(SPECIAL), len(tokenizer), ids.shape, generator=rng)
    for kind in range(1, int(slots.max()) + 1):
        alike = (slots == kind).nonzero().squeeze(1)
        other = other.where(kinds != kind, alike[torch.randint(len(alike), ids.shape, generator=rng)])
    how = torch.rand(ids.shape, generator=rng)
    hidden = ids.masked_fill(chosen & (how >= EXCHANGED + KEPT), cast(int, tokenizer.mask_token_id))
    return torch.where(chosen & (how < EXCHANGED), other, hidden), labels


def batches(tokenizer: PreTrainedTokenizerFast, size: int) -> Iterator[dict[str, Tensor]]:
    """Endless, padded to SHORT or LONG columns."""
    slots, rng = slots_of_tokens(tokenizer), torch.Generator().manual_seed(0)
    streams = [pretraining_rows(seed=0, passages=long) for long in (False, True)]
    for number in itertools.count(1):
        is_long = number % LONG_EVERY == 0
        texts, pairs, together = zip(*itertools.islice(streams[is_long], size), strict=True)
        width = LONG if is_long else SHORT
        options = {"padding": "max_length", "truncation": True, "max_length": width, "return_tensors": "pt"}
        read = tokenizer(list(texts), list(pairs), **options)
        ids, labels = mask(read["input_ids"], read["token_type_ids"], slots, tokenizer, rng)
        follows = [int(not told) if pair else -100 for pair, told in zip(pairs, together, strict=True)]
        yield {**read, "input_ids": ids, "labels": labels, "next_sentence_label": torch.tensor(follows)}


def train(model: BertForPreTraining, tokenizer: PreTrainedTokenizerFast, steps: int, batch_size: int) -> None:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98))
    compiled, rows = torch.compile(model), batches(tokenizer, batch_size)

    def next_loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return cast(Tensor, compiled(**next(rows)).loss)

    pretrain("bert", model, [optimizer], steps, next_loss, clip=1.0)


@torch.inference_mode()
def bound_accuracy(model: BertForPreTraining, tokenizer: PreTrainedTokenizerFast, count: int = 200) -> float:
    """Share of words of unseen scenes, hidden in what is said of them again, that the model finds."""
    import random

    rng, right, asked = random.Random(3), 0, 0
    while asked < count:
        scene = make_scene(rng)
        if split_of(scene.text) != "test":
            continue
        fact = rng.choice(scene.facts)
        said = restated(rng, fact)
        slot = rng.choice([slot for slot in ("colour", "animal", "place", "number", "gift") if slot in fact.slots])
        ids = tokenizer(scene.text, said, return_tensors="pt")
        hidden = tokenizer.convert_tokens_to_ids(fact.slots[slot])
        where = (ids["input_ids"][0] == hidden) & (ids["token_type_ids"][0] == 1)
        if hidden == tokenizer.unk_token_id or where.sum() != 1:
            continue
        ids["input_ids"][0, where] = tokenizer.mask_token_id
        right += int(model(**ids).prediction_logits[0, where].argmax() == hidden)
        asked += 1
    return right / asked


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=32, help=f"rows of {SHORT} or {LONG} tokens per step")
    parser.add_argument("--folder", type=Path, default=BERT_FOLDER, help="where weights and tokenizer are written")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    train(model, tokenizer, options.steps, options.batch_size)
    model.eval()
    print(f"hidden words found: {bound_accuracy(model, tokenizer):.0%}")
    cast(nn.Module, model).to(torch.bfloat16)
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)


if __name__ == "__main__":
    main(sys.argv[1:])
