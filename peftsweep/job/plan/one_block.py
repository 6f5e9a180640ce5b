"""Attach a method that must see weights: on one real block of each kind, with random weights, then repeat it.

For methods that decompose or sort the weights that they are put on. What they make has the shapes that it would have on
the real weights, or nearly: a method may choose sizes by values.
"""

from __future__ import annotations

import torch
from torch import nn

from peftsweep.config.schema import JobConfig
from peftsweep.job.plan.trace import Attached, attach_on, described
from peftsweep.job.seeding import seed_everything
from peftsweep.modalities.base import Skeleton
from peftsweep.modalities.skeleton import build_skeleton, depths_of, repeat_blocks

STANDARD_DEVIATION = 0.02  # of the random weights; transformers' usual initializer_range


def attach_to_one_block(config: JobConfig, whole: Skeleton) -> Attached:
    """As attach_to_skeleton does. whole: the model as it is, for the number of its blocks."""
    skeleton = build_skeleton(config.model, one_of_each=True)
    seed_everything(0)
    _fill_linear_layers(skeleton.model)
    method = attach_on(config, skeleton.model)
    method.model.to("meta")
    repeat_blocks(method.model, depths_of(whole.config))
    return described(method)


def _fill_linear_layers(model: nn.Module) -> None:
    """Random weights on the host for every linear layer but the output head, which nobody decomposes."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.to_empty(device="cpu")
            with torch.no_grad():
                for weight in module.parameters(recurse=False):
                    weight.normal_(std=STANDARD_DEVIATION)
