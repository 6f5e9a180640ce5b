"""How the embedded models are pre-trained: the one loop, the course of the learning rate, and the optimizers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def pretrain(
    name: str,
    module: nn.Module,
    optimizers: Sequence[Optimizer],
    steps: int,
    next_loss: Callable[[], Tensor],
    clip: float = math.inf,
) -> None:
    """Take `steps` steps with `warmup_cosine`, and print the loss now and then.

    next_loss: the loss (scalar) of another batch; clip: the longest gradient of `module`.
    """
    schedules, started = [warmup_cosine(optimizer, steps) for optimizer in optimizers], time.perf_counter()
    for step in range(steps):
        loss = next_loss()
        loss.backward()
        if clip < math.inf:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        module.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            seconds = time.perf_counter() - started
            print(f"{name} step {step:5d}/{steps}  loss {loss.item():.4f}  {seconds:5.0f} s", flush=True)


def warmup_cosine(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Linear warm-up over 2% of the steps, then cosine to a twentieth of the optimizer's rate."""
    warmup = max(1, steps // 50)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return LambdaLR(optimizer, factor)


def muon(module: nn.Module, peak: float, weight_decay: float = 0.0) -> list[Optimizer]:
    """Muon for matrices and convolutions, AdamW for the rest, both with the learning rate `peak`.

    On models this small it needs fewer than half of AdamW's steps. Keller Jordan et al., "Muon" (2024); the size of
    updates that fits AdamW's learning rates is that of Liu et al., "Muon is Scalable for LLM Training"
    (arXiv 2502.16982).
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    matrices = [p for name, p in trained.items() if p.ndim > 1 and "embed_tokens" not in name]
    others = [p for name, p in trained.items() if p.ndim <= 1 or "embed_tokens" in name]
    # torch's Muon takes matrices only; these share the memory of the convolutions' weights.
    flat = [p.detach().view(len(p), -1) for p in matrices]

    def flatten_gradients(*_: object) -> None:
        for parameter, matrix in zip(matrices, flat, strict=True):
            matrix.grad = None if parameter.grad is None else parameter.grad.view_as(matrix)

    optimizer = torch.optim.Muon(flat, lr=peak, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    optimizer.register_step_pre_hook(flatten_gradients)
    return [optimizer, torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.98), weight_decay=0.0)]
