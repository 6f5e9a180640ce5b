"""The loss of a language model, without ever holding float32 logits for a whole batch.

At a vocabulary of 49,152 and a batch of 4 x 512 tokens, the logits in float32 take 400 MB, their gradient as much
again: more than the rest of a small model. So the output head is set aside during the forward pass, the model returns
hidden states in place of logits, and head and cross entropy are applied together, a slice of tokens at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftConfig, PeftModel, PeftType
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from peftsweep.errors import is_device_lost, is_out_of_memory
from peftsweep.modalities.base import BatchLoss
from peftsweep.modalities.wrapped import base_of, evaluating, on_device_of, uncompiled

IGNORED_LABEL = -100
SLICE_LOGITS_BYTES = 64 * 2**20  # float32 logits of one slice: small beside a model, large enough to keep a GPU busy
MIN_SLICE_TOKENS = 256  # fewer rows than this and reading the head's weight costs more than the product itself
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # of a model's configuration
# Where whole logits are built: what a pass without gradients may hold of them, and of one logit the model's own, its
# float32 copy and its log-probability.
EVALUATION_LOGITS_BYTES, LOGIT_BYTES = 2**30, 12

# These replace the model's loss by their own, computed from full logits over their context's tokens too. They are
# trained on the same target tokens as all others, since losses that count different tokens can't be compared.
REPLACES_LOSS = {PeftType.CPT}

_MAY_FUSE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # models without weights

NOTHING: Mapping[str, Tensor] = {}

# One object for the whole process: torch.compile recompiles when a module that it has seen is exchanged for a new one.
_NO_HEAD = nn.Identity()


def language_model_loss(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    *,
    fused: bool = True,
    masked: bool = True,
    given: Mapping[str, Tensor] = NOTHING,
) -> BatchLoss:
    """Next-token loss of a transformers causal LM, bare or in any PEFT wrapper, compiled or not.

    input_ids, attention_mask, labels: (b, s), padded on the right, on the host or where the model is. A label of -100
    is no target, and the first column never is one, so that every method is judged on the same tokens whether or not it
    puts virtual tokens before them.
    fused: see `supports_fused_loss`; `False` builds the float32 logits, as transformers does. masked: see `needs_mask`.
    given: what the model reads beside tokens, by its name for it, as `pixel_values`.
    Returns float32 nats: their sum over all targets, and apart from it what the method adds to the mean loss (AdaLoRA's
    orthogonality, Shadow's own path), 0 for most.
    """
    targets = labels[:, 1:].flatten()
    rows = (
        (targets != IGNORED_LABEL).nonzero().squeeze(1)
    )  # on the host, if they are there: a device would be waited for
    batch = {"ids": input_ids, "mask": attention_mask, "labels": labels, "targets": targets, "rows": rows}
    batch, given = on_device_of(model, batch), on_device_of(model, given)
    rows, targets = batch["rows"], batch["targets"]
    mask = batch["mask"] if masked else None
    outputs = _forward(model, batch["ids"], mask, batch["labels"], given, without_head=fused)
    n_positions = input_ids.shape[1]
    states = outputs.logits[:, -n_positions:-1]  # virtual tokens, where a method has them, stand first
    states = states.reshape(-1, states.shape[-1]).index_select(0, rows)
    targets = targets.index_select(0, rows)
    if fused:
        head = base_of(model).get_output_embeddings()
        total = linear_cross_entropy_sum(states, head.weight, head.bias, targets)
    else:
        total = functional.cross_entropy(states.float(), targets, reduction="sum")
    auxiliary = total.new_zeros(()) if outputs.loss is None else outputs.loss.float()
    return BatchLoss(total, auxiliary)


def linear_cross_entropy_sum(states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Cross entropy in nats of `states @ weight.T + bias`, summed in float32, holding logits of one slice of rows only.

    states: (n, d); weight: (v, d); bias: (v,) or None; targets: (n,), each a class of v. Differentiable once.
    """
    device_type = states.device.type
    is_autocast = device_type != "meta" and torch.is_autocast_enabled(device_type)
    if is_autocast:
        dtype = torch.get_autocast_dtype(device_type)
        states, weight = states.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if len(targets) == 0:
        return states.sum().float() * 0.0  # a graph of its own, so that backward works on a batch without targets
    with torch.autocast(device_type, enabled=False) if is_autocast else nullcontext():
        total: Tensor = _SlicedCrossEntropy.apply(states, weight, bias, targets)
        return total


class _SlicedCrossEntropy(torch.autograd.Function):
    """Forms the gradients in the forward pass, while a slice's logits are there: what computes the logits again in
    backward reads the head a third time. What is kept until then is as large as the hidden states."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        for_states, for_weight, for_bias, _ = ctx.needs_input_grad
        of_states = torch.empty_like(states) if for_states else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and for_bias else None
        total = states.new_zeros((), dtype=torch.float32)
        size = _slice_tokens(len(targets), len(weight))
        for start in range(0, len(targets), size):
            part, classes = states[start : start + size], targets[start : start + size, None]
            logits = functional.linear(part, weight, bias).float()
            picked, largest = logits.gather(1, classes), logits.amax(dim=1, keepdim=True)
            shares = logits.sub_(largest).exp_()  # in place: a slice's logits are what the loss holds at its peak
            sums = shares.sum(dim=1, keepdim=True)
            total += (sums.log() + largest - picked).sum()
            if not (for_states or for_weight or for_bias):
                continue
            slopes = shares.div_(sums)  # by each logit: its share, and less one at the target
            slopes.scatter_add_(1, classes, slopes.new_full((), -1.0).expand_as(classes))
            slopes = slopes.to(states.dtype)
            if of_states is not None:
                torch.mm(slopes, weight, out=of_states[start : start + size])
            if of_weight is not None:
                of_weight += slopes.T @ part
            if of_bias is not None:
                of_bias += slopes.sum(dim=0, dtype=torch.float32)
        # As precise as what they belong to: a head's in float32 would be twice as large as the head.
        of_weight = None if of_weight is None else of_weight.to(weight.dtype)
        of_bias = None if of_bias is None or bias is None else of_bias.to(bias.dtype)
        ctx.save_for_backward(of_states, of_weight, of_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if slope is None else slope * outer.to(slope.dtype) for slope in ctx.saved_tensors), None


def supports_fused_loss(model: nn.Module) -> bool:
    """Whether the fused loss is this model's loss, found by trying: ask once, after the method is attached.

    It is not where the method trains or wraps the head itself (LoRA on `lm_head`, `modules_to_save`, trainable tokens
    on a tied head), where the model changes logits after its head (soft-capping, scaling), or where the method needs
    the head inside its forward pass (Shadow). Draws no global random number and leaves the model's mode as it was.
    """
    head = base_of(model).get_output_embeddings()
    if not _is_plain(head):
        return False
    try:
        with evaluating(model), torch.no_grad():
            return _returns_head_output_unchanged(model, head) and _losses_agree(model, head)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        return False  # a model that fails without its head is one that needs it


def may_fuse_loss(model: nn.Module) -> bool:
    """The same of a model without weights, by what happens to its head's output: on the way to the logits it may be
    viewed, copied and cast, and nothing else may be made of it. Takes a second for 3 billion parameters, so the answer
    is kept as long as the model."""
    if model not in _MAY_FUSE:
        _MAY_FUSE[model] = _goes_to_the_logits_unchanged(model)
    return _MAY_FUSE[model]


def _goes_to_the_logits_unchanged(model: nn.Module) -> bool:
    head = base_of(model).get_output_embeddings()
    if not _is_plain(head):
        return False
    try:
        with evaluating(model), torch.no_grad(), _Following() as followed:
            handle = head.register_forward_hook(lambda *call: followed.begin(call[-1]))
            try:
                _forward(model, *_probe_batch(head), without_head=False)
            finally:
                handle.remove()
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        return False
    return followed.beginnings == 1 and not followed.is_changed


def needs_mask(model: nn.Module) -> bool:
    """Whether padding on the right changes what stands before it, found by trying: ask once, after the method is
    attached.

    In a causal model it doesn't, and without a mask attention takes its fastest kernels, which don't repeat the keys of
    grouped heads either. Methods that put virtual tokens before a text make masks of their own; mixtures of experts
    share their room among all tokens, padding too. Draws no global random number and leaves the model's mode as it was.
    """
    config = base_of(model).config.get_text_config()
    inner = uncompiled(model)
    if any(getattr(config, name, None) for name in EXPERTS):
        return True
    if isinstance(inner, PeftModel) and inner.active_peft_config.is_prompt_learning:
        return True
    ids = torch.arange(1, 13).remainder(config.vocab_size).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    labels = ids.masked_fill(mask == 0, IGNORED_LABEL)
    try:
        with evaluating(model), torch.no_grad():
            losses = [language_model_loss(model, ids, mask, labels, fused=False, masked=on).sum for on in (True, False)]
            with_mask, without = losses
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        return True  # a model without weights, or one that asks for its mask
    return not torch.isclose(with_mask, without, rtol=_tolerance(next(model.parameters()).dtype), atol=0.0)


def rows_at_once(model: nn.Module, most: int, tokens: int, *, fused: bool) -> int:
    """Of rows of so many tokens, those whose loss evaluation computes in one pass: all, or where whole logits are built
    as many as EVALUATION_LOGITS_BYTES hold, and one at least."""
    vocabulary = base_of(model).config.get_text_config().vocab_size
    return most if fused else min(most, max(1, EVALUATION_LOGITS_BYTES // (LOGIT_BYTES * tokens * vocabulary)))


def _is_plain(head: nn.Module | None) -> bool:
    return type(head) is nn.Linear and head.weight.is_floating_point()


class _Following(TorchDispatchMode):
    """Sees whether values of a tensor, or of what is viewed, copied or cast from it, go into anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.beginnings, self.is_changed = 0, False
        self._storages: dict[int, torch.UntypedStorage] = {}  # held, so that no other gets the number of one of them

    def begin(self, tensor: Tensor) -> None:
        self.beginnings += 1
        self._follow(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        used = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        if any(tensor.untyped_storage()._cdata in self._storages for tensor in used):
            if func.is_view or func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.clone):
                self._follow(made)
            else:
                self.is_changed = True
        return made

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage


def _slice_tokens(n_tokens: int, vocabulary_size: int) -> int:
    """Rows of one slice: as many as the memory for logits allows, and all slices of nearly the same length."""
    most = max(MIN_SLICE_TOKENS, SLICE_LOGITS_BYTES // (4 * vocabulary_size))
    n_slices = math.ceil(n_tokens / most)
    return math.ceil(n_tokens / n_slices)


def _forward(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor,
    given: Mapping[str, Tensor] = NOTHING,
    *,
    without_head: bool,
) -> Any:
    """logits: (b, [virtual +] s, v), or without the head hidden states (b, [virtual +] s, d); loss: the method's
    auxiliary loss alone, or None."""
    inner = uncompiled(model)
    may_add_loss = isinstance(inner, PeftModel) and _may_add_loss(inner.active_peft_config)
    with _own_loss_silenced(base_of(model), without_head=without_head):
        return model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels if may_add_loss else None,
            use_cache=False,
            **given,
        )


def _may_add_loss(config: PeftConfig) -> bool:
    """An adapter that was read to be used adds nothing; given labels, AdaLoRA's asks for what it has in training."""
    return not config.inference_mode and config.peft_type not in REPLACES_LOSS


def _zero_loss(logits: Tensor, labels: Tensor, vocab_size: int, **kwargs: object) -> Tensor:
    return torch.zeros((), device=logits.device)


@contextmanager
def _own_loss_silenced(base: PreTrainedModel, *, without_head: bool) -> Iterator[None]:
    """Have the model compute 0 as its loss: given labels, a method then adds its auxiliary term to nothing else.

    `_loss_function` is private to transformers: its property can be set but not unset.
    """
    head = base.get_output_embeddings()
    own_loss = {name: value for name, value in vars(base).items() if name == "_loss_function"}
    base.loss_function = _zero_loss
    if without_head:
        base.set_output_embeddings(_NO_HEAD)
    try:
        yield
    finally:
        if without_head:
            base.set_output_embeddings(head)
        del base._loss_function
        vars(base).update(own_loss)


def _probe_batch(head: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(head.out_features, (2, 12), generator=generator).to(head.weight.device)
    return input_ids, torch.ones_like(input_ids), input_ids


def _returns_head_output_unchanged(model: nn.Module, head: nn.Linear) -> bool:
    """Compare the head's output with the model's, at a scale where soft-capping shows even on an untrained model."""
    seen: list[Tensor] = []

    def enlarge_and_keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        plain = functional.linear(inputs[0], head.weight, head.bias)
        seen.append(output * 1e3 if torch.allclose(output, plain) else torch.full_like(output, torch.nan))
        return seen[-1]

    handle = head.register_forward_hook(enlarge_and_keep)
    try:
        logits = _forward(model, *_probe_batch(head), without_head=False).logits
    finally:
        handle.remove()
    return len(seen) == 1 and torch.equal(logits.float(), seen[0].float())


def _tolerance(dtype: torch.dtype) -> float:
    """Relative, of a loss that is computed in two ways."""
    return 1e-4 if dtype == torch.float32 else 2e-2


def _losses_agree(model: nn.Module, head: nn.Linear) -> bool:
    plain = language_model_loss(model, *_probe_batch(head), fused=False)
    fused = language_model_loss(model, *_probe_batch(head), fused=True)
    tolerance = _tolerance(head.weight.dtype)
    same_loss = torch.isclose(plain.sum, fused.sum, rtol=tolerance, atol=0.0)
    same_auxiliary = torch.isclose(plain.auxiliary, fused.auxiliary, rtol=tolerance, atol=1e-6)
    return bool(same_loss & same_auxiliary)
