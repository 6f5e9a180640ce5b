"""What a plan says of one of several ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peftsweep.job.plan.planner import MemoryPlan

PlanOf = Callable[..., MemoryPlan]
BATCH = "hparams.batch_size=4"


@pytest.fixture(scope="module")
def alone(plan_of: PlanOf) -> MemoryPlan:
    return plan_of("method=lora", BATCH)


def test_a_rank_has_its_part_of_the_blocks_and_all_of_the_rest(alone: MemoryPlan, plan_of: PlanOf) -> None:
    two, four = (plan_of("method=lora", BATCH, "parallel=fsdp", f"parallel.dp_shard_size={size}") for size in (2, 4))
    whole = alone.parts["weights"]
    blocks = 2 * (whole - two.parts["weights"])
    assert 0 < blocks < whole
    assert four.parts["weights"] == pytest.approx(whole - blocks * 3 / 4, rel=0.001)
    assert two.parts["adapter"] == alone.parts["adapter"]
    assert (alone.ranks, two.ranks, two.batch_size, four.batch_size) == (1, 2, 2, 1)
    # Two buffers of a block, and the block at work.
    assert alone.parts["gathered blocks"] == 0
    assert two.parts["gathered blocks"] == pytest.approx(3 * blocks / 4, rel=0.05)


def test_full_fine_tuning_shares_out_gradients_and_the_optimizers_state(plan_of: PlanOf) -> None:
    alone, two = (plan_of("method=full", BATCH, *parallel) for parallel in ((), ("parallel=fsdp",)))
    saved = alone.parts["adapter"] - two.parts["adapter"]
    assert saved > 0
    assert alone.parts["optimizer"] - two.parts["optimizer"] == pytest.approx(2 * saved, rel=0.1)


def test_offloaded_parts_wait_on_the_host(plan_of: PlanOf) -> None:
    on_device, on_host = (
        plan_of("method=lora", BATCH, "parallel=fsdp", f"parallel.offload={offload}") for offload in ("false", "true")
    )
    assert on_device.host_bytes == 0
    assert on_host.host_bytes > 0
    moved = on_device.parts["weights"] - on_host.parts["weights"]
    assert moved == pytest.approx(on_host.host_bytes, rel=0.01)


def test_copies_hold_all_and_take_their_share_of_the_rows(alone: MemoryPlan, plan_of: PlanOf) -> None:
    copies = plan_of("method=lora", BATCH, "parallel=ddp")
    assert copies.parts["weights"] == alone.parts["weights"]
    assert copies.train_peak_bytes < alone.train_peak_bytes
