"""What the pre-training scripts of the embedded models share: the course of the learning rate, and the optimizers."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Linear warm-up over 2% of the steps, then cosine to a twentieth of the optimizer's rate."""
    return LambdaLR(optimizer, partial(_rate_factor, steps=steps))


def _rate_factor(step: int, steps: int) -> float:
    warmup = max(1, steps // 50)
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Muon:
    """Muon for matrices and convolutions, AdamW for the rest, with `warmup_cosine` from `peak`.

    On models this small it needs fewer than half of AdamW's steps. Keller Jordan et al., "Muon" (2024); the size of
    updates that fits AdamW's learning rates is that of Liu et al., "Muon is Scalable for LLM Training"
    (arXiv 2502.16982).
    """

    def __init__(self, module: nn.Module, steps: int, peak: float, weight_decay: float = 0.0) -> None:
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.matrices = [p for name, p in trained.items() if p.ndim > 1 and "embed_tokens" not in name]
        others = [p for name, p in trained.items() if p.ndim <= 1 or "embed_tokens" in name]
        # torch's Muon takes matrices only; these share the memory of the convolutions' weights.
        self.flat = [p.detach().view(len(p), -1) for p in self.matrices]
        self.optimizers = (
            torch.optim.Muon(self.flat, lr=peak, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.98), weight_decay=0.0),
        )
        self.schedules = [warmup_cosine(optimizer, steps) for optimizer in self.optimizers]
        self.module = module

    def step(self) -> None:
        """Update all parameters from their gradients, then forget these."""
        for parameter, flat in zip(self.matrices, self.flat, strict=True):
            flat.grad = None if parameter.grad is None else parameter.grad.view_as(flat)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.module.zero_grad(set_to_none=True)
