"""The optimizer of the image models: Muon for matrices and convolutions, AdamW for the rest.

On models this small it needs fewer than half of AdamW's steps. Keller Jordan et al., "Muon" (2024); the size of updates
that fits AdamW's learning rates is that of Liu et al., "Muon is Scalable for LLM Training" (arXiv 2502.16982).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftsweep.modalities.text.pocket.pretrain import learning_rate

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration
UPDATE_SIZE = 0.2  # root mean square of AdamW's updates, about


class Muon:
    """One step of training a module after another, with warm-up and cosine decay to a twentieth of `peak`."""

    def __init__(self, module: nn.Module, steps: int, peak: float, weight_decay: float = 0.0) -> None:
        parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.matrices = [p for name, p in parameters if p.ndim > 1 and "embed_tokens" not in name]
        others = [p for name, p in parameters if p.ndim <= 1 or "embed_tokens" in name]
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
        self.steps, self.peak, self.weight_decay = steps, peak, weight_decay

    @torch.no_grad()
    def step(self, index: int) -> None:
        """Update all parameters from their gradients, then forget these; `index` is the step's number from 0."""
        rate = learning_rate(index, self.steps, self.peak)
        for parameter, momentum in zip(self.matrices, self.momenta, strict=True):
            if parameter.grad is None:
                continue
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            update = orthogonalise(parameter.grad.lerp(momentum, MOMENTUM).flatten(1))
            size = UPDATE_SIZE * max(update.shape) ** 0.5
            parameter.mul_(1 - rate * self.weight_decay).sub_(rate * size * update.view_as(parameter))
            parameter.grad = None
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


def orthogonalise(matrix: Tensor) -> Tensor:
    """About the nearest orthogonal matrix: all singular values near 1, by Newton-Schulz iteration."""
    tall = matrix.shape[0] > matrix.shape[1]
    found = (matrix.T if tall else matrix).bfloat16()
    found = found / (found.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        square = found @ found.T
        found = a * found + (b * square + c * square @ square) @ found
    return (found.T if tall else found).float()
