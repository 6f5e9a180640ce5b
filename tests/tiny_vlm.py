"""An Idefics3, and a Qwen2.5-VL, of some thousand random weights with their processors, and pictures, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from peftsweep.modalities.base import BaseModel

COLOURS = ("red", "green", "blue", "black", "white")
WORDS = ("What", "colour", "is", "it", "Tell", "the", "picture", "User", "Assistant", "a", "ball", "on")
SIDE, PATCH = 64, 16
BEGIN, END, PAD = "<|im_start|>", "<end_of_utterance>", "<pad>"
IDEFICS_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>")
QWEN_TOKENS = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
CHAT_TEMPLATE = (
    BEGIN + "{% for message in messages %}{{ message.role | capitalize }}:"
    "{% for part in message.content %}{% if part.type == 'image' %}PICTURE{% else %} {{ part.text }}{% endif %}"
    "{% endfor %}" + END + "\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
LANGUAGE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "initializer_range": 0.2,
}


def tiny_tokenizer(special: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Of whole words; what it doesn't know is one token."""
    known = [PAD, BEGIN, END, "<unk>", *special, *WORDS, *COLOURS, *map(str, range(40)), ":", "?", "."]
    words = {word: number for number, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD, "unk_token": "<unk>"}
    built = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **ends)
    built.add_special_tokens({"additional_special_tokens": list(special)})
    return built


def save_tiny_vlm(folder: Path, *, positions: int = 256) -> Path:
    """An Idefics3 with four tokens a picture, and three around them."""
    tokenizer = tiny_tokenizer(IDEFICS_TOKENS)
    side = {"longest_edge": SIDE}
    pictures = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    template = CHAT_TEMPLATE.replace("PICTURE", "<image>")
    seq_len = (SIDE // PATCH // 2) ** 2
    processor: Any = Idefics3Processor(pictures, tokenizer, image_seq_len=seq_len, chat_template=template)
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "initializer_range": 0.2,
    }
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "max_position_embeddings": positions,
        "pad_token_id": tokenizer.pad_token_id,
        **LANGUAGE,
        **ends,
    }
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
        vision_config=vision,
        text_config=text,
        **ends,
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class QwenProcessor:
    """What the tasks ask of Qwen's own processor, which can't be made without torchvision: it reads videos too."""

    image_token = "<|image_pad|>"

    def __init__(self) -> None:
        self.tokenizer = tiny_tokenizer(QWEN_TOKENS)
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        self.image_processor = Qwen2VLImageProcessorPil(
            patch_size=14, merge_size=2, size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 12}
        )
        self.tokenizer.chat_template = CHAT_TEMPLATE.replace("PICTURE", "<|vision_start|><|image_pad|><|vision_end|>")
        self.apply_chat_template = self.tokenizer.apply_chat_template

    def __call__(self, text: list[str], images: Any, **options: Any) -> dict[str, Any]:
        grid = self.image_processor(images=images[0], return_tensors="pt")["image_grid_thw"][0]
        return self.tokenizer(
            [text[0].replace(self.image_token, self.image_token * (int(grid.prod()) // 4))], **options
        )


def build_tiny_qwen_vl() -> BaseModel:
    """A Qwen2.5-VL, whose pictures take more tokens the larger they are, numbered by line and column."""
    processor = QwenProcessor()
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    names = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "video_token_id")
    ids = dict(zip(names, map(tokenizer.convert_tokens_to_ids, QWEN_TOKENS), strict=True))
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        **LANGUAGE,
        **ends,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": LANGUAGE["hidden_size"],
        "patch_size": 14,
        "fullatt_block_indexes": [1],
        "window_size": 56,
        "initializer_range": 0.2,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids, **ends)
    model = Qwen2_5_VLForConditionalGeneration(config).eval().requires_grad_(False)
    return BaseModel(model, tokenizer, "tiny", False, processor=processor)


def write_questions(folder: Path, count: int = 30, *, numbered: bool = False) -> Path:
    """A jsonl of questions about pictures beside it, each of another size. numbered: in other words too."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        colour = COLOURS[number % len(COLOURS)]
        picture = Image.new("RGB", (40 + 3 * number, 60), colour)
        picture.paste("white" if number % 2 else "black", (0, 0, 5 + number, 20))
        picture.save(folder / f"{number:02d}.png")
        asked = f"What colour is it {'on ' * (number % 4)}{number} ?" if numbered else "What colour is it?"
        rows.append({"image": f"{number:02d}.png", "question": asked, "answer": colour})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
