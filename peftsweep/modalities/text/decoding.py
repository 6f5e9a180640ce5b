"""Greedy decoding of many prompts, without paying for the longest answer of every batch.

A batch of `generate` runs until its last sequence is done, however short the others are. Here a sequence leaves the
batch when it is finished, and a waiting prompt takes its place: the number of forward passes follows the total length
of the answers, not the sum of the longest ones. Predictions are those of `model.generate` on one prompt at a time.
"""

from __future__ import annotations

import gc
import inspect
import logging
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from peftsweep.errors import DataError, ModelError, Problem, is_out_of_memory
from peftsweep.modalities.wrapped import base_of, compiled_blocks_idle, evaluating, uncompiled
from peftsweep.ranks import world

log = logging.getLogger(__name__)

# Whether a sequence is finished is known on the device; asking makes the host wait for it. So this many steps are
# queued at a time, and a finished sequence runs on for at most as many, its surplus tokens thrown away.
STEPS_BETWEEN_CHECKS = 8
# Prompts are read together once this share of the batch is free: one at a time they would cost a forward pass each.
REFILL_SHARE = 0.1
# Most prompts read in one forward pass: all are padded to the longest, so fewer, sorted by length, waste less.
READ_TOGETHER = 32
ROOM_TOKENS = 64  # how far the cache grows at once


# (numbers of prompts, their ids, (b, s), padded on the left) -> what the pass that reads them is given beside tokens
Given = Callable[[Sequence[int], Tensor], Mapping[str, Tensor]]


def nothing_given(indices: Sequence[int], input_ids: Tensor) -> Mapping[str, Tensor]:
    return {}


@dataclass(frozen=True)
class Decoded:
    """generations: new token ids without the end-of-sequence token, in the order of the prompts. One that has
    `max_new_tokens` ids was cut off. generation_config: what was in effect, to be logged with the scores."""

    generations: list[list[int]]
    generation_config: dict[str, Any]


def decode_greedily(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    given: Given = nothing_given,
    on_done: Callable[[int], None] | None = None,
) -> Decoded:
    """Continue each prompt (token ids) with its likeliest tokens, until end of sequence or `max_new_tokens`.

    model: a transformers causal LM, bare or in any PEFT wrapper, prompt learning included; its mode (train or eval) is
    restored. The generation config of the checkpoint is set aside: some ship sampling or penalties.
    tokenizer: only its eos_token_id is asked for. It ends an answer, and so does what ends one in the checkpoint's
    generation config: chat models have a token for the end of a turn. Without any, every answer runs to its limit.
    batch_size: most sequences at a time; halved, with a warning, each time the device runs out of memory.
    given: pictures, for the tokens that stand for them.
    on_done: called with the number of prompts finished since its last call.
    Raises DataError for an empty prompt, torch.OutOfMemoryError if not even one sequence fits.
    """
    if not all(prompts):
        empty = [index for index, prompt in enumerate(prompts) if not prompt]
        raise DataError(Problem("each prompt must have at least one token", f"none in prompts {empty[:5]}"))
    if batch_size < 1 or max_new_tokens < 1:
        raise ValueError(f"batch_size and max_new_tokens must be at least 1, got {batch_size} and {max_new_tokens}")
    end_tokens = _end_tokens(model, tokenizer)
    queue = _Queue(prompts, end_tokens, max_new_tokens, on_done)
    model = uncompiled(model)
    with evaluating(model), torch.inference_mode(), compiled_blocks_idle(model):
        while queue.waiting:
            if not _decode_until_done(_ForwardPass(model, given), queue, batch_size):
                message = "Out of memory while decoding %d sequences at a time; going on with %d."
                log.warning(message, batch_size, batch_size // 2)
                batch_size //= 2
                gc.collect()
                if next(model.parameters()).is_cuda:
                    torch.cuda.empty_cache()
    plain = {
        "do_sample": False,
        "num_beams": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
    }
    ends = {"max_new_tokens": max_new_tokens, "eos_token_id": end_tokens, "pad_token_id": queue.pad_token}
    return Decoded(queue.generations, {**plain, **ends, "batch_size": batch_size})


def check_decoding(model: nn.Module) -> None:
    """Continue a prompt of two tokens by two, as `decode_greedily` would, before anything is trained that could not be
    scored. Raises ModelError for a model that can't go on from a cache of transformers."""
    forward = _ForwardPass(uncompiled(model))
    if forward.device.type == "meta":
        return  # nobody will ask it
    try:
        with evaluating(model), torch.inference_mode():
            forward.advance(forward.read([0], [[0, 0]], 0), 1)
    except (TypeError, AttributeError, KeyError, NotImplementedError) as error:
        rule = f"a language model must go on from a cache, token by token ({type(error).__name__}: {error})"
        fix = "Attention models, Mamba and hybrids do; RWKV, xLSTM and RecurrentGemma have their own."
        raise ModelError(Problem(rule, type(forward.base).__name__, "model.id", fix)) from error


def _end_tokens(model: nn.Module, tokenizer: Any) -> list[int]:
    """The tokenizer's first. A generation config that transformers made up of the model's own, for a checkpoint without
    one, tells nothing: the default of a model class is no token of this checkpoint."""
    config = getattr(base_of(model), "generation_config", None)
    of_model = None if config is None or config._from_model_config else config.eos_token_id
    several = of_model if isinstance(of_model, list) else [of_model]
    return list(dict.fromkeys(token for token in (tokenizer.eos_token_id, *several) if token is not None))


@dataclass
class _Queue:
    """What is still to do and what is done: prompts waiting, longest first, and tokens generated so far."""

    prompts: Sequence[Sequence[int]]
    end_tokens: Sequence[int]
    max_new_tokens: int
    on_done: Callable[[int], None] | None
    finished: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.generations: list[list[int]] = [[] for _ in self.prompts]
        self.restart()

    def restart(self) -> None:
        """All that is not finished waits, from the start: the cache of sequences under way is lost."""
        unfinished = [index for index in range(len(self.prompts)) if index not in self.finished]
        for index in unfinished:
            self.generations[index] = []
        # Prompts of like length need little padding; the longest first, so that a lack of memory shows at once.
        self.waiting = sorted(unfinished, key=lambda index: -len(self.prompts[index]))

    @property
    def pad_token(self) -> int:
        """Any will do: the mask hides it."""
        return self.end_tokens[0] if self.end_tokens else 0

    def take(self, n_prompts: int) -> list[int]:
        taken, self.waiting = self.waiting[:n_prompts], self.waiting[n_prompts:]
        return taken

    def record(self, indices: Sequence[int], tokens: Tensor) -> list[int]:
        """Append each sequence's new tokens, (b, n); answer the rows, not the indices, of those that go on."""
        rows = list(zip(indices, tokens.tolist(), strict=True))
        for index, new in rows:
            generation = self.generations[index]
            generation += takewhile(lambda token: token not in self.end_tokens, new)
            if len(generation) == self.max_new_tokens or not set(new).isdisjoint(self.end_tokens):
                self.finished.add(index)
        going_on = [row for row, index in enumerate(indices) if index not in self.finished]
        if self.on_done and len(going_on) < len(rows):
            self.on_done(len(rows) - len(going_on))
        return going_on

    def steps_at_once(self, indices: Iterable[int]) -> int:
        """Until it is asked again which of these are finished: half an answer, so that few are made for nothing; and
        none past their limit, where a model with learned positions may have no more."""
        longest = max(len(self.generations[index]) for index in indices)
        return max(1, min(STEPS_BETWEEN_CHECKS, self.usual_length() // 2, self.max_new_tokens - longest))

    def is_refill_due(self, free_share: float) -> bool:
        """Whether so much of a batch is free that prompts should be read: where answers are short, much of it is free
        after every other step, and to read a few prompts each time costs more than to wait."""
        return free_share >= max(REFILL_SHARE, min(1.0, 2 / self.usual_length()))

    def usual_length(self) -> int:
        """Tokens of an answer, at least 1: of those that are finished, or else of all so far."""
        known = self.finished or [index for index, tokens in enumerate(self.generations) if tokens]
        return max(1, int(statistics.median(len(self.generations[index]) for index in known))) if known else 1


@dataclass
class _Batch:
    """Sequences under way, one a row.

    indices: which prompt a row continues; last_token, position: (b,), the token to feed next and its position;
    attention_mask: (b, k), 1 where the cache of k positions holds something of that row.
    """

    indices: list[int]
    last_token: Tensor
    position: Tensor
    attention_mask: Tensor
    cache: Cache

    def keep(self, rows: list[int]) -> _Batch | None:
        """Only these rows, and no positions that none of them uses; None for none."""
        if len(rows) == len(self.indices):
            return self
        if not rows:
            return None
        selected = torch.tensor(rows, device=self.last_token.device)
        mask = self.attention_mask[selected]
        layers = _preallocated_layers(self.cache)
        if layers:
            n_unused = int(mask.any(dim=0).int().argmax())
            mask = mask[:, n_unused:]
            for layer in layers:
                layer.hold(layer.keys[selected, :, n_unused:], layer.values[selected, :, n_unused:])
        else:  # `reorder_cache` selects rows in every kind of layer, `batch_select_indices` in some
            self.cache.reorder_cache(cast("torch.LongTensor", selected))
        indices = [self.indices[row] for row in rows]
        return _Batch(indices, self.last_token[selected], self.position[selected], mask, self.cache)

    def join(self, other: _Batch) -> _Batch:
        """Both batches' rows; the shorter cache is padded on the left, where the mask hides it."""
        length = max(self.attention_mask.shape[1], other.attention_mask.shape[1])
        for mine, theirs in zip(_preallocated_layers(self.cache), _preallocated_layers(other.cache), strict=True):
            mine.hold(
                torch.cat([_pad_left(mine.keys, length), _pad_left(theirs.keys, length)]),
                torch.cat([_pad_left(mine.values, length), _pad_left(theirs.values, length)]),
            )
        masks = [
            functional.pad(batch.attention_mask, (length - batch.attention_mask.shape[1], 0)) for batch in (self, other)
        ]
        return _Batch(
            self.indices + other.indices,
            torch.cat([self.last_token, other.last_token]),
            torch.cat([self.position, other.position]),
            torch.cat(masks),
            self.cache,
        )


def _pad_left(states: Tensor, length: int) -> Tensor:
    """Keys or values (b, heads, k, d), lengthened to (b, heads, length, d)."""
    return functional.pad(states, (0, 0, length - states.shape[2], 0))


class _PreallocatedLayer(DynamicLayer):
    """A layer of the cache with room for tokens to come; `DynamicLayer` copies all of itself for each new token."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.is_initialized = True
        self.hold(keys, values)

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Replace the contents, (b, heads, k, d) each. Room is made at the next token."""
        self.keys = self.room_for_keys = keys
        self.values = self.room_for_values = values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append key_states and value_states, (b, heads, n, d); answer all keys and all values."""
        start, n_new = self.keys.shape[2], key_states.shape[2]
        if start + n_new > self.room_for_keys.shape[2]:
            self.room_for_keys = functional.pad(self.keys, (0, 0, 0, n_new + ROOM_TOKENS))
            self.room_for_values = functional.pad(self.values, (0, 0, 0, n_new + ROOM_TOKENS))
        self.room_for_keys[:, :, start : start + n_new] = key_states
        self.room_for_values[:, :, start : start + n_new] = value_states
        self.keys = self.room_for_keys[:, :, : start + n_new]
        self.values = self.room_for_values[:, :, : start + n_new]
        return self.keys, self.values


def _preallocate(cache: Cache) -> Cache:
    """The same cache, preallocated if all its layers keep every position as keys and values.

    A sliding window or a recurrent state stays as it is: their sequences can leave a batch, but none can join it.
    """
    layers = [
        _PreallocatedLayer(layer.keys, layer.values)
        for layer in cache.layers
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None
    ]
    if isinstance(cache, DynamicCache) and len(layers) == len(cache.layers):
        cache.layers = list(layers)
    return cache


def _preallocated_layers(cache: Cache) -> list[_PreallocatedLayer]:
    """All layers of a preallocated cache, none of any other."""
    return [layer for layer in cache.layers if isinstance(layer, _PreallocatedLayer)]


class _ForwardPass:
    """Runs a model, whatever wraps it, one token a sequence further."""

    def __init__(self, model: nn.Module, given: Given = nothing_given) -> None:
        self.given = given
        self.model: Any = model  # transformers' methods, which PEFT's wrappers offer without sharing a class
        self.base = base_of(model)
        # One layer further in than `model`, which would put virtual tokens before every single token.
        self.inner = model.base_model if isinstance(model, PeftModel) else model
        self.device = next(model.parameters()).device
        self.accepts = inspect.signature(self.base.forward).parameters.keys()
        self.is_recurrent = "past_key_values" not in self.accepts and "cache_params" in self.accepts  # Mamba's kin
        self.cache_name = "cache_params" if self.is_recurrent else "past_key_values"
        # Qwen-VL's kin number a picture's tokens by line and column, and what follows from the highest number on.
        self.places: Any = getattr(self.base, "model", None)
        self.has_places = hasattr(self.places, "rope_deltas")

    def read(self, indices: list[int], prompts: Sequence[Sequence[int]], pad_token_id: int) -> _Batch:
        """A new batch: prompts in the cache, their first generated token chosen."""
        width = max(len(prompts[index]) for index in indices)
        rows = [[pad_token_id] * (width - len(prompts[index])) + list(prompts[index]) for index in indices]
        mask_rows = [[0] * (width - len(prompts[index])) + [1] * len(prompts[index]) for index in indices]
        input_ids = torch.tensor(rows, device=self.device)
        inputs = self.model.prepare_inputs_for_generation(
            input_ids,
            attention_mask=torch.tensor(mask_rows, device=self.device),
            is_first_iteration=True,
            use_cache=True,
            **{self.cache_name: DynamicCache(config=self.base.config)},
        )
        # Virtual tokens stand before the padding, and PEFT numbers positions as if the padding were text: a padded
        # prompt would get another answer than alone. Counting real tokens only is right with and without them.
        mask = inputs["attention_mask"].long()
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        states = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
        inputs |= {"attention_mask": mask, "position_ids": positions[:, -states.shape[1] :]}
        next_position = positions[:, -1] + 1
        given = {name: tensor.to(self.device) for name, tensor in self.given(indices, input_ids).items()}
        if given and self.has_places:
            del inputs["position_ids"]  # the model's own work, which knows the pictures
        logits, cache = self._run(inputs | given)
        if given and self.has_places:
            next_position = next_position + self.places.rope_deltas[:, 0]
        return _Batch(indices, logits.argmax(dim=-1), next_position, mask, _preallocate(cache))

    def advance(self, batch: _Batch, n_steps: int) -> Tensor:
        """Feed and choose `n_steps` tokens a row, in place; answer them, (b, n_steps); don't wait for the device."""
        chosen = []
        for _ in range(n_steps):
            batch.attention_mask = functional.pad(batch.attention_mask, (0, 1), value=1)
            inputs = {
                "input_ids": batch.last_token[:, None],
                self.cache_name: batch.cache,
                # A state has taken in what was masked when it was read, and is asked about the new token alone.
                "attention_mask": None if self.is_recurrent else batch.attention_mask,
                "position_ids": batch.position[:, None],
                "use_cache": True,
            }
            logits, batch.cache = self._run(inputs)
            batch.last_token, batch.position = logits.argmax(dim=-1), batch.position + 1
            chosen.append(batch.last_token)
        return torch.stack(chosen, dim=1)

    def _run(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Cache]:
        """Logits of the last position (b, v), and the cache."""
        unknown = {"position_ids", "logits_to_keep"} - self.accepts
        known = {name: value for name, value in {"logits_to_keep": 1, **inputs}.items() if name not in unknown}
        outputs = self.inner(**known)
        return outputs.logits[:, -1], outputs[self.cache_name]


def _decode_until_done(forward: _ForwardPass, queue: _Queue, batch_size: int) -> bool:
    """Work off the queue. False: memory ran out, and what was under way waits again."""
    batch: _Batch | None = None
    try:
        while queue.waiting or batch is not None:
            if queue.waiting and _should_refill(batch, batch_size, queue):
                n_free = batch_size - (0 if batch is None else len(batch.indices))
                taken = queue.take(min(n_free, READ_TOGETHER))  # a few of like length at a time
                arrived = forward.read(taken, queue.prompts, queue.pad_token)
                left = arrived.keep(queue.record(taken, arrived.last_token[:, None]))
                batch = left or batch if batch is None or left is None else batch.join(left)
            elif batch is not None:
                tokens = forward.advance(batch, queue.steps_at_once(batch.indices))
                batch = batch.keep(queue.record(batch.indices, tokens))
    except RuntimeError as error:
        if batch_size == 1 or world.is_in_step() or not is_out_of_memory(error):
            raise
        queue.restart()
        return False
    return True


def _should_refill(batch: _Batch | None, batch_size: int, queue: _Queue) -> bool:
    if batch is None:
        return True
    n_free = batch_size - len(batch.indices)
    return n_free > 0 and queue.is_refill_due(n_free / batch_size) and bool(_preallocated_layers(batch.cache))
