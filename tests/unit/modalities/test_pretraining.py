import pytest
import torch
from torch import Tensor, nn

from peftsweep.modalities.pretraining import muon, pretrain, warmup_cosine


def test_the_rate_rises_over_a_fiftieth_of_the_steps_and_falls_to_a_twentieth() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, rates = warmup_cosine(optimizer, 100), []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:3] == pytest.approx([1.0, 2.0, 2.0])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, rel=0.01)


def test_muon_moves_convolutions_matrices_and_biases_and_leaves_what_is_frozen() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3), nn.Linear(3, 3))
    network[3].requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    pictures, losses = torch.randn(8, 2, 4, 4), []

    def next_loss() -> Tensor:
        losses.append(network(pictures).square().mean())
        return losses[-1]

    pretrain("test", network, muon(network, peak=1e-2), 20, next_loss)
    moved = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert losses[-1].item() < 0.7 * losses[0].item()
    assert all(parameter.grad is None for parameter in network.parameters())
