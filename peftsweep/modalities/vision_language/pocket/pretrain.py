"""Pre-train pocket-vlm, the embedded vision-language model: `make pocket-models`.

From scratch and all parts at once, on conversations about drawn pictures and on general passages. The vision tower is
helped by two heads that tell of each patch which form and which colour is there; they are thrown away. Seeded, and
reproducible on one machine; another CPU rounds differently, so the shipped weights are the reference.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from peftsweep.modalities.image.pocket.drawing import COLOURS, FORMS, SIDE
from peftsweep.modalities.pretraining import muon, pretrain
from peftsweep.modalities.text_world import pretraining_documents
from peftsweep.modalities.vision_language.pocket import VLM_FOLDER
from peftsweep.modalities.vision_language.pocket.scenes import RADIUS, Scene, draw, said_and_asked, scenes_of

BEGIN, END, PAD = "<|im_start|>", "<end_of_utterance>", "<pad>"
IMAGE, AROUND, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
CHAT_TEMPLATE = (
    BEGIN + "{% for message in messages %}{{ message.role | capitalize }}:"
    "{% if message.content is string %} {{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PATCH, SHUFFLE, PATCHES = 8, 2, SIDE // 8
IMAGE_TOKENS = (PATCHES // SHUFFLE) ** 2
VOCABULARY = 896
PEAK_RATE = 2e-3
ROW_TOKENS = 112  # of a picture and what is said of it, or of packed passages
PICTURES, PASSAGES = 16, 4  # rows of a batch
PATCH_SHARE = 0.5  # of the loss on patches, beside that on words
IGNORED = -100


def build_processor(words: int = VOCABULARY) -> Any:
    """Byte-level BPE trained on what is said of pictures and on passages; a digit is a token. Pictures are scaled to
    SIDE, and never cut in tiles. words: the most tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, BEGIN, END, IMAGE, AROUND, GLOBAL]
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(1)
    turns = (said_and_asked(rng, scene) for scene in itertools.islice(scenes_of("train", 1), 20_000))
    said = (f"User: {asked}\nAssistant: {answer}\n" for asked, answer in turns)
    # The task's own words are part of the vocabulary, as they are of any real tokenizer; the model never sees them in
    # this order.
    task_words = ["What colour is the How many things are there? Is there a yes no"] * 200
    documents = itertools.islice(pretraining_documents(seed=1), 10_000)
    tokenizer.train_from_iterator(itertools.chain(said, documents, task_words), trainer)
    built = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD, model_max_length=512
    )
    built.add_special_tokens({"additional_special_tokens": [IMAGE, AROUND, GLOBAL]})
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    return Idefics3Processor(pictures, built, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


def build_model(tokenizer: Any) -> Idefics3ForConditionalGeneration:
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=True,
        scale_factor=SHUFFLE,
        vision_config={
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "pad_token_id": tokenizer.pad_token_id,
            **ends,
        },
        **ends,
    )
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id, **ends)
    return model


class Reader(nn.Module):
    """The model's parts as one network without a branch that depends on values, which compiles; and the patch heads."""

    def __init__(self, model: Any, first_image_token: int) -> None:
        super().__init__()
        inner = model.model
        self.vision_model, self.connector, self.text_model = inner.vision_model, inner.connector, inner.text_model
        size = model.config.vision_config.hidden_size
        self.patch_heads = nn.ModuleList([nn.Linear(size, len(names) + 1) for names in (FORMS, COLOURS)])
        self.first = first_image_token

    def forward(self, ids: Tensor, labels: Tensor, pixels: Tensor, patches: Tensor) -> Tensor:
        """ids, labels (b, s), the last rows of which have no picture; pixels (p, 3, SIDE, SIDE); patches (2, p, n):
        the class of each patch, by form and by colour -> scalar loss."""
        states = self.vision_model(pixel_values=pixels).last_hidden_state
        told = [functional.cross_entropy(head(states).flatten(0, 1).float(), kind.flatten())
                for head, kind in zip(self.patch_heads, patches, strict=True)]  # fmt: skip
        seen = self.connector(states)
        embedded = self.text_model.get_input_embeddings()(ids)
        count, last = len(pixels), self.first + IMAGE_TOKENS
        with_pictures = torch.cat([embedded[:count, : self.first], seen, embedded[:count, last:]], dim=1)
        read = self.text_model(inputs_embeds=torch.cat([with_pictures, embedded[count:]]), use_cache=False)
        logits = functional.linear(read.last_hidden_state[:, :-1], self.text_model.get_input_embeddings().weight)
        words = functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
        return words + PATCH_SHARE * (told[0] + told[1])


def patch_classes(scene: Scene) -> np.ndarray:
    """Of each patch, in reading order, by form and by colour: 0 for the ground, else which of FORMS and COLOURS lies
    there, (2, n)."""
    middles = (np.arange(PATCHES) + 0.5) / PATCHES
    found = np.zeros((2, PATCHES, PATCHES), dtype=np.int64)
    for thing in scene.things:
        x, y = thing.centre
        here = (middles[None, :] - x) ** 2 + (middles[:, None] - y) ** 2 < RADIUS**2
        found[0][here] = 1 + list(FORMS).index(thing.form)
        found[1][here] = 1 + list(COLOURS).index(thing.colour)
    return found.reshape(2, -1)


def conversations(tokenizer: Any, rng: random.Random, scene: Scene, *, word_first: bool) -> tuple[list[int], list[int]]:
    """(ids, labels) of ROW_TOKENS: a picture, and turns about it for as long as there is room; answers are targets."""
    start = f"{BEGIN}User:{AROUND}{GLOBAL}{IMAGE * IMAGE_TOKENS}{AROUND}"
    ids: list[int] = tokenizer(start, add_special_tokens=False)["input_ids"]
    labels = [IGNORED] * len(ids)
    while len(ids) < ROW_TOKENS:
        asked, answer = said_and_asked(rng, scene, word_first=word_first)
        before = (
            f" {asked}{END}\nAssistant:" if len(labels) == IMAGE_TOKENS + 6 else f"\nUser: {asked}{END}\nAssistant:"
        )
        asked_ids, answer_ids = tokenizer([before, f" {answer}{END}"], add_special_tokens=False)["input_ids"]
        ids += asked_ids + answer_ids
        labels += [IGNORED] * len(asked_ids) + answer_ids
    return ids[:ROW_TOKENS], labels[:ROW_TOKENS]


def batches(processor: Any, pictures: int, passages: int, *, word_first: bool) -> Iterator[tuple[Tensor, ...]]:
    """Endless (ids, labels, pixels, patches), as Reader reads them."""
    stage = int(word_first)
    tokenizer, rng, stock = processor.tokenizer, random.Random("words" if word_first else "turns"), list[int]()
    scenes, documents = scenes_of("train", stage), pretraining_documents(seed=2 + stage)
    for number in itertools.count():
        drawn = list(itertools.islice(scenes, pictures))
        rows = [conversations(tokenizer, rng, scene, word_first=word_first) for scene in drawn]
        while len(stock) < passages * ROW_TOKENS:
            stock += tokenizer(f" {next(documents)}{END}", add_special_tokens=False)["input_ids"]
        for row in range(passages):
            rows.append((stock[row * ROW_TOKENS : (row + 1) * ROW_TOKENS],) * 2)
        del stock[: passages * ROW_TOKENS]
        ids, labels = (torch.tensor(part) for part in zip(*rows, strict=True))
        painted = torch.from_numpy(np.stack([draw(scene, number * pictures + i) for i, scene in enumerate(drawn)]))
        pixels = painted.permute(0, 3, 1, 2).float() / 127.5 - 1  # as the processor makes them
        patches = torch.from_numpy(np.stack([patch_classes(scene) for scene in drawn], axis=1))
        yield ids, labels, pixels, patches


def train(model: Any, processor: Any, steps: int, pictures: int, passages: int, *, word_first: bool) -> None:
    first = len(processor.tokenizer(f"{BEGIN}User:{AROUND}{GLOBAL}", add_special_tokens=False)["input_ids"])
    reader, rows = Reader(model, first).train(), batches(processor, pictures, passages, word_first=word_first)
    compiled = torch.compile(reader)

    def next_loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return cast(Tensor, compiled(*next(rows)))

    pretrain("vlm", reader, muon(reader, PEAK_RATE, weight_decay=0.01), steps, next_loss, clip=1.0)


@torch.inference_mode()
def sentences_right(model: Any, processor: Any, count: int = 200) -> float:
    """Share of questions about unseen pictures, in the form of pre-training, whose whole answer is the likeliest."""
    rng, right = random.Random(3), 0
    for number, scene in enumerate(itertools.islice(scenes_of("test"), count)):
        asked, answer = said_and_asked(rng, scene, word_first=True)
        while not asked.startswith(("Name", "Count", "Look")):
            asked, answer = said_and_asked(rng, scene, word_first=True)
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}
        prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
        inputs = processor(text=f"{prompt} {answer}{END}", images=[draw(scene, number)], return_tensors="pt")
        answered = len(processor.tokenizer(f" {answer}{END}", add_special_tokens=False)["input_ids"])
        logits = model(**inputs).logits[0, -answered - 1 : -1]
        right += int((logits.argmax(-1) == inputs["input_ids"][0, -answered:]).all())
    return right / count


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2400, help="optimizer steps of the first part")
    parser.add_argument("--more-steps", type=int, default=1600, help="of the second, with answers that begin by a word")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="rows with a picture per step")
    parser.add_argument("--passages", type=int, default=PASSAGES, help=f"rows of {ROW_TOKENS} tokens of text per step")
    parser.add_argument("--folder", type=Path, default=VLM_FOLDER, help="where weights and processor are written")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    processor = build_processor()
    model = build_model(processor.tokenizer)
    train(model, processor, options.steps, options.pictures, options.passages, word_first=False)
    cast(nn.Module, model).to(torch.bfloat16).float()  # as if stored and read again
    train(model, processor, options.more_steps, options.pictures, options.passages, word_first=True)
    model.eval()
    print(f"whole answers that are the likeliest: {sentences_right(model, processor):.0%}")
    cast(nn.Module, model).to(torch.bfloat16)
    model.save_pretrained(options.folder)
    processor.save_pretrained(options.folder)


if __name__ == "__main__":
    main(sys.argv[1:])
