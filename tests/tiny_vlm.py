"""An Idefics3 of some thousand random weights with its processor, and pictures of one colour, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from peftsweep.modalities.vision_language.pocket.pretrain import IMAGE, build_processor

COLOURS = ("red", "green", "blue", "black", "white")
SIDE, PATCH = 64, 16


def save_tiny_vlm(folder: Path, *, positions: int = 256) -> Path:
    """With the tokenizer and the chat template of the embedded model, and four tokens a picture."""
    processor: Any = build_processor(words=400)
    processor.image_seq_len = (SIDE // PATCH // 2) ** 2
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=2,
        tie_word_embeddings=False,
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": PATCH,
            "initializer_range": 0.2,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": positions,
            "initializer_range": 0.2,
            "pad_token_id": tokenizer.pad_token_id,
            **ends,
        },
        **ends,
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_questions(folder: Path, count: int = 30, **columns: Any) -> Path:
    """A jsonl of questions about pictures beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        colour = COLOURS[number % len(COLOURS)]
        Image.new("RGB", (40 + number, 32), colour).save(folder / f"{number:02d}.png")
        rows.append({"image": f"{number:02d}.png", "question": "What colour is it?", "answer": colour, **columns})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
