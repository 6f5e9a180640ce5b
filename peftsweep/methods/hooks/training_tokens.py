"""Methods that start from, or are put on, the tokens of the training text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, initialize_kv_prefix_from_text

from peftsweep.methods.hooks.interface import CalibratedHook, HookContext, active_config


@dataclass(frozen=True)
class TextPrefix(CalibratedHook):
    """Starts the key-value prefix from real text instead of noise: the given one, or the first training rows."""

    text: str = ""  # "": decode calibration rows

    def calibration_batches(self) -> int:
        return 0 if self.text else self.batches

    def outline(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        return arguments

    def calibrate(self, model: PeftModel, context: HookContext) -> None:
        text = self.text
        if not text:
            context.require_batches("a prefix from text")
            rows = [batch["input_ids"][batch["attention_mask"].bool()] for batch in context.batches]
            text = str(context.tokenizer.decode(torch.cat(rows), skip_special_tokens=True))
        length = active_config(model).num_virtual_tokens
        initialize_kv_prefix_from_text(model, context.tokenizer, text=text, use_chat_template=False, max_length=length)


@dataclass(frozen=True)
class FrequentTokens(CalibratedHook):
    """Trains the embeddings of the tokens that the training data uses most."""

    tokens: int = 0  # how many; the YAML wires it to method.capacity
    batches: int = 32

    def outline(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        return {"token_indices": list(range(self.tokens))} | arguments

    def configure(self, arguments: dict[str, Any], context: HookContext) -> dict[str, Any]:
        context.require_batches("trainable tokens")
        ids = torch.cat([batch["input_ids"][batch["attention_mask"].bool()] for batch in context.batches])
        values, counts = ids.unique(return_counts=True)
        most = counts.argsort(descending=True, stable=True)[: self.tokens]
        return {"token_indices": sorted(values[most].tolist())} | arguments


@dataclass(frozen=True)
class ContextTokens(CalibratedHook):
    """Starts CPT's prompt from tokens of training rows, the in-context examples of arXiv 2410.17222."""

    tokens: int = 0  # how many; the YAML wires it to method.capacity

    def outline(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        count = self.tokens
        return {"cpt_token_ids": [0] * count, "cpt_tokens_type_mask": [2] * count} | arguments

    def configure(self, arguments: dict[str, Any], context: HookContext) -> dict[str, Any]:
        context.require_batches("CPT")
        kept = [batch["attention_mask"].bool() for batch in context.batches]
        ids = torch.cat([batch["input_ids"][mask] for batch, mask in zip(context.batches, kept, strict=True)])
        labels = torch.cat([batch["labels"][mask] for batch, mask in zip(context.batches, kept, strict=True)])
        is_answer = labels[: self.tokens] != -100
        if is_answer.all():  # the loss covers questions too, so labels don't tell them apart: let every token move
            is_answer = torch.zeros_like(is_answer)
        # peft's codes: 2 = input, which training may move; 4 = label, which stays as it is.
        types = torch.where(is_answer, 4, 2).tolist()
        found = {"cpt_token_ids": ids[: self.tokens].tolist(), "cpt_tokens_type_mask": types}
        return found | arguments
