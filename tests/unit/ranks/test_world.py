"""A process that does its job alone, and one of two."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftsweep.ranks import world


def test_alone_everything_is_ones_own() -> None:
    assert (world.size(), world.rank(), world.describe()) == (1, 0, {})
    assert list(world.own([3, 1, 2])) == world.collected([3, 1, 2]) == [3, 1, 2]
    assert world.added_up(1.5, 2) == [1.5, 2]
    assert world.of_first("a") == "a"
    assert (world.any_of(False), world.any_of(True)) == (False, True)


def test_alone_gradients_and_the_loss_are_left_as_they_are() -> None:
    model = nn.Linear(2, 1, bias=False)
    model(torch.ones(1, 2)).sum().backward()
    loss = torch.tensor(3.0)
    assert world.sum_gradients(model, loss) is loss
    assert torch.equal(model.weight.grad, torch.ones(1, 2))  # type: ignore[arg-type]
    assert float(world.clip_gradients(model, 1.0)) > 1.0
    assert float(model.weight.grad.norm()) <= 1.0001  # type: ignore[union-attr]


def test_a_world_is_left_as_it_was_entered() -> None:
    meeting: Any = world.meeting_point("127.0.0.1", 0, 1, is_first=True)
    with world.joined(0, 1, meeting, torch.device("cpu")):
        assert world.collected([1, 2]) == [1, 2]
        assert world.gathered("x") == ["x"]
        assert world.describe()["interconnect"] == "gloo"
    assert world.describe() == {}
