"""torch.compile of a model's repeated blocks: what is compiled for the first serves all, and rows of any length. It is
ready in a fraction of the time that a whole model takes, and about as fast."""

from __future__ import annotations

import logging

from torch import nn

from peftsweep.modalities.wrapped import repeated_blocks

log = logging.getLogger(__name__)

LIMIT = "recompile limit exceeded"  # of a key of Dynamo's counters


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile in place, forgetting what earlier jobs of the process compiled: each rank is another program, and Dynamo
    goes on uncompiled after the eighth."""
    import torch._dynamo  # takes a second, and few jobs compile

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for block in repeated_blocks(model):
        block.compile(dynamic=True, backend=backend)


def compiling_seconds() -> float:
    """Spent on compilation in this process so far."""
    from torch._dynamo.utils import calculate_time_spent

    return calculate_time_spent()["total_wall_time"]


def warn_of_uncompiled() -> None:
    """After training: tell if a part of it went on uncompiled."""
    from torch._dynamo import config
    from torch._dynamo.utils import counters

    if any(LIMIT in reason for reason in counters["unimplemented"]):
        log.warning(
            "torch.compile met its limit of %d programs for one function and went on without: the times of this job "
            "are not those of a compiled model.",
            config.recompile_limit,
        )
