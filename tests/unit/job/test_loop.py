import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from peftsweep.config.schema import HparamsConfig
from peftsweep.errors import MethodError, NonFiniteLossError
from peftsweep.job import loop
from peftsweep.job.loop import LoopCallbacks, TrainingState, build_loss_scaler, build_scheduler, train
from peftsweep.modalities.base import Batch, BatchLoss

FEATURES = 3


class Regression:
    """A task of rows x and targets y; the loss is the sum of squared errors."""

    def __init__(self, auxiliary: float = 0.0) -> None:
        self.auxiliary = auxiliary
        self.seen_dtypes: set[torch.dtype] = set()

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        predicted = model(batch["x"]).squeeze(-1)
        self.seen_dtypes.add(predicted.dtype)
        return BatchLoss((predicted.float() - batch["y"]).square().sum(), predicted.new_full((), self.auxiliary))

    def targets(self, batch: Batch) -> int:
        return len(batch["y"])

    def tokens(self, batch: Batch) -> int:
        return 10 * len(batch["y"])

    def lengths(self, batch: Batch) -> list[int]:
        return [10] * len(batch["y"])

    def rows(self, batch: Batch, which: Sequence[int]) -> Batch:
        return {key: tensor[list(which)] for key, tensor in batch.items()}


class FromZero(nn.Module):
    """Linear without a bias, from 0: the gradient of the first step is easy to work out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(FEATURES, 1))

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.weight


def build_batches(*sizes: int, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"x": torch.randn(size, FEATURES, generator=generator), "y": torch.randn(size, generator=generator)}
        for size in sizes
    ]


def join(batches: Sequence[Batch]) -> Batch:
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, 1)


def run(
    batches: Sequence[Batch],
    callbacks: LoopCallbacks | None = None,
    model: nn.Module | None = None,
    task: Regression | None = None,
    state: TrainingState | None = None,
    **settings: Any,
) -> nn.Module:
    model = model or build_model()
    state = state or build_state(model)
    train(
        model,
        task or Regression(),
        cycle(batches),
        state,
        HparamsConfig(**{"eval_every": 0} | settings),
        callbacks or LoopCallbacks(),
    )
    return model


def build_state(model: nn.Module, lr: float = 0.1) -> TrainingState:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return TrainingState(optimizer, build_scheduler(optimizer, "constant", 10, 0.0))


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


class Log:
    """What the loop called, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.reports: list[tuple[int, dict[str, float]]] = []

    def callbacks(self) -> LoopCallbacks:
        def report(step: int, metrics: dict[str, float]) -> None:
            self.calls.append(("report", step))
            self.reports.append((step, metrics))

        def validate(step: int) -> dict[str, float]:
            self.calls.append(("validate", step))
            return {"valid/loss": float(step)}

        def note(name: str) -> Callable[[int], None]:
            return lambda step: self.calls.append((name, step))

        @contextmanager
        def measure(tokens: int) -> Iterator[None]:
            self.calls.append(("begin", tokens))
            yield
            self.calls.append(("end", tokens))

        return LoopCallbacks(report, validate, note("after_step"), note("checkpoint"), measure)

    def steps(self, name: str) -> list[int]:
        return [step for called, step in self.calls if called == name]


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
def test_accumulated_batches_of_different_size_are_one_large_batch(max_grad_norm: float) -> None:
    batches = build_batches(1, 5, 2, 4, 7, 3)
    small = run(batches, max_steps=2, gradient_accumulation=3, max_grad_norm=max_grad_norm)
    large = run([join(batches[:3]), join(batches[3:])], max_steps=2, max_grad_norm=max_grad_norm)
    assert torch.allclose(weights(small), weights(large), rtol=1e-6, atol=1e-7)


def test_the_mean_of_batch_means_would_be_something_else() -> None:
    batches = build_batches(1, 9)
    accumulated = run(batches, max_steps=1, gradient_accumulation=2, max_grad_norm=0.0)
    model = build_model()
    for batch in batches:
        (Regression().loss(model, batch).sum / len(batch["y"]) / 2).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.allclose(weights(accumulated), weights(model), rtol=1e-3)


def test_the_reported_loss_is_the_mean_over_all_targets_of_the_step() -> None:
    batches, log = build_batches(2, 6), Log()
    with torch.no_grad():
        expected = Regression().loss(build_model(), join(batches)).sum.item() / 8
    run(batches, log.callbacks(), max_steps=1, gradient_accumulation=2)
    assert log.reports[0][1]["train/loss"] == pytest.approx(expected, rel=1e-6)


def test_what_a_method_adds_to_the_loss_weighs_the_same_at_any_accumulation() -> None:
    class Penalised(Regression):
        def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
            return BatchLoss(super().loss(model, batch).sum, sum(p.square().sum() for p in model.parameters()))

    batches = build_batches(1, 5, 2)
    small = run(batches, task=Penalised(), max_steps=1, gradient_accumulation=3)
    large = run([join(batches)], task=Penalised(), max_steps=1)
    assert torch.allclose(weights(small), weights(large), rtol=1e-6)
    assert not torch.allclose(weights(small), weights(run([join(batches)], max_steps=1)))


def learning_rates(name: str, max_steps: int, warmup_fraction: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    return rates_of(build_scheduler(optimizer, name, max_steps, warmup_fraction), optimizer, max_steps)


def rates_of(scheduler: Any, optimizer: torch.optim.Optimizer, max_steps: int) -> list[float]:
    rates = [scheduler.get_last_lr()[0]]
    for _ in range(max_steps):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


@pytest.mark.parametrize(
    ("name", "reference"), [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)]
)
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.1, 0.5])
def test_schedules_are_those_of_transformers(name: str, reference: Any, warmup_fraction: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    expected = rates_of(reference(optimizer, round(40 * warmup_fraction), 40), optimizer, 40)
    assert learning_rates(name, 40, warmup_fraction) == pytest.approx(expected, abs=1e-12)


def test_the_constant_schedule_only_warms_up() -> None:
    assert learning_rates("constant", 10, 0.2) == [0.0, 1.0, *[2.0] * 9]


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_warming_up_all_the_way_ends_at_the_full_rate(name: str) -> None:
    assert learning_rates(name, 4, 1.0) == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])


def test_the_reported_rate_is_the_one_that_the_step_used() -> None:
    model, log = build_model(), Log()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = TrainingState(optimizer, build_scheduler(optimizer, "linear", 4, 0.5))
    before = weights(model)
    run(build_batches(3), log.callbacks(), model=model, state=state, max_steps=1)
    assert log.reports[0][1]["train/lr"] == 0.0
    assert torch.equal(weights(model), before)


def test_gradients_are_clipped_and_reported_unclipped() -> None:
    log, model = Log(), FromZero()
    batch = {"x": torch.tensor([[3.0, 0.0, 4.0]]), "y": torch.tensor([-0.5])}  # gradient 2 * 0.5 * (3, 0, 4): norm 5
    run([batch], log.callbacks(), model=model, state=build_state(model, lr=1.0), max_steps=1, max_grad_norm=0.5)
    assert log.reports[0][1]["train/grad_norm"] == pytest.approx(5.0)
    assert weights(model).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_a_limit_of_zero_does_not_clip() -> None:
    model = FromZero()
    batch = {"x": torch.tensor([[30.0, 0.0, 40.0]]), "y": torch.tensor([-0.5])}
    run([batch], model=model, state=build_state(model, lr=1.0), max_steps=1, max_grad_norm=0.0)
    assert weights(model).norm().item() == pytest.approx(50.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_its_step_and_the_weights_of_the_step_before(value: float) -> None:
    bad = {"x": torch.ones(1, FEATURES), "y": torch.tensor([value])}
    good, log, model = build_batches(4, 4), Log(), build_model()
    with pytest.raises(NonFiniteLossError, match="training loss must stay finite; at step 3 it was not"):
        run([*good, bad], log.callbacks(), model=model, max_steps=5)
    assert torch.equal(weights(model), weights(run(good, max_steps=2)))
    assert log.steps("report") == [1, 2]


def test_a_gradient_that_is_not_finite_stops_too() -> None:
    class Root(nn.Module):
        """sqrt at 0 has a finite value and an infinite slope."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(FEATURES, 1))

        def forward(self, rows: Tensor) -> Tensor:
            return (rows @ self.weight).sqrt()

    model = Root()
    with pytest.raises(NonFiniteLossError, match="training gradient norm must stay finite; at step 1 it was not"):
        run([{"x": torch.ones(1, FEATURES), "y": torch.ones(1)}], model=model, max_steps=5)
    assert torch.equal(weights(model), torch.zeros(FEATURES))


@pytest.mark.parametrize(("eval_every", "expected"), [(0, [6]), (2, [2, 4, 6]), (4, [4, 6]), (6, [6]), (100, [6])])
def test_validation_comes_every_so_often_and_once_at_the_end(eval_every: int, expected: list[int]) -> None:
    log = Log()
    run(build_batches(2), log.callbacks(), max_steps=6, eval_every=eval_every)
    assert log.steps("validate") == expected
    assert [(step, metrics) for step, metrics in log.reports if "valid/loss" in metrics] == [
        (step, {"valid/loss": float(step)}) for step in expected
    ]


def test_every_step_is_reported_in_order() -> None:
    log = Log()
    run(build_batches(2), log.callbacks(), max_steps=5, eval_every=2)
    trained = [(step, metrics) for step, metrics in log.reports if "train/loss" in metrics]
    assert [step for step, _ in trained] == [1, 2, 3, 4, 5]
    assert all(metrics.keys() == {"train/loss", "train/lr", "train/grad_norm"} for _, metrics in trained)


def test_a_step_is_measured_hooked_reported_validated_and_kept_in_this_order() -> None:
    log = Log()
    run(build_batches(2, 3), log.callbacks(), max_steps=4, gradient_accumulation=2, eval_every=2, checkpoint_every=2)
    second = log.calls[log.calls.index(("report", 1)) + 1 : log.calls.index(("checkpoint", 2)) + 1]
    assert second == [
        ("begin", 50),
        ("after_step", 2),
        ("end", 50),
        ("report", 2),
        ("validate", 2),
        ("report", 2),
        ("checkpoint", 2),
    ]


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, [1, 2, 3]), (3600.0, [])])
def test_without_a_number_of_steps_a_checkpoint_is_due_by_time(
    seconds: float, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", seconds)
    log = Log()
    run(build_batches(2), log.callbacks(), max_steps=4)
    assert log.steps("checkpoint") == expected


def test_stopped_in_a_validation_the_next_run_begins_with_it() -> None:
    class StoppedError(Exception):
        pass

    def stop(step: int) -> dict[str, float]:
        raise StoppedError

    model = build_model()
    state = build_state(model)
    with pytest.raises(StoppedError):
        run(build_batches(2), LoopCallbacks(validate=stop), model=model, state=state, max_steps=4, eval_every=2)
    assert (state.step, state.owes_validation) == (2, True)
    log = Log()
    run(build_batches(2), log.callbacks(), model=model, state=state, max_steps=4, eval_every=2)
    assert log.steps("validate") == [2, 4]
    assert not state.owes_validation


def test_a_step_and_its_report_are_not_cut_in_two() -> None:
    log = Log()

    @contextmanager
    def undivided() -> Iterator[None]:
        log.calls.append(("enter", 0))
        yield
        log.calls.append(("leave", 0))

    callbacks = replace(log.callbacks(), undivided=undivided)
    run(build_batches(2), callbacks, max_steps=1)
    names = [name for name, _ in log.calls]
    assert names == [
        *("enter", "begin", "after_step", "end", "report", "leave"),
        *("validate", "enter", "report", "leave"),
    ]


def test_no_checkpoint_is_written_at_the_end() -> None:
    log = Log()
    run(build_batches(2), log.callbacks(), max_steps=4, checkpoint_every=2)
    assert log.steps("checkpoint") == [2]


def test_the_hook_sees_the_gradients_of_its_step() -> None:
    model, seen = build_model(), []
    callbacks = LoopCallbacks(after_step=lambda step: seen.append(all(p.grad is not None for p in model.parameters())))
    run(build_batches(2), callbacks, model=model, max_steps=2)
    assert seen == [True, True]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_methods_own_loss_is_added_to_the_mean(accumulated: int) -> None:
    """A penalty of 3 * bias has the gradient 3, however many batches make a step."""
    plain, penalised = build_model(), build_model()
    settings = {"max_steps": 1, "gradient_accumulation": accumulated, "max_grad_norm": 0.0}
    run(build_batches(2), model=plain, **settings)
    run(build_batches(2), LoopCallbacks(own_loss=lambda: 3 * penalised.bias.sum()), model=penalised, **settings)
    torch.testing.assert_close(plain.bias - penalised.bias, torch.tensor([0.1 * 3]))
    torch.testing.assert_close(plain.weight, penalised.weight)


def test_a_report_can_stop_the_job() -> None:
    class PrunedError(Exception): ...

    def report(step: int, metrics: dict[str, float]) -> None:
        if step == 3:
            raise PrunedError

    model = build_model()
    state = build_state(model)
    with pytest.raises(PrunedError):
        run(build_batches(2), LoopCallbacks(report=report), model=model, state=state, max_steps=10)
    assert state.step == 3


def test_training_goes_on_from_the_step_of_its_state() -> None:
    model, log = build_model(), Log()
    state = build_state(model)
    state.step = 4
    run(build_batches(2), log.callbacks(), model=model, state=state, max_steps=6)
    assert log.steps("after_step") == [5, 6]


def test_a_state_at_its_last_step_trains_no_more() -> None:
    model, log = build_model(), Log()
    state = build_state(model)
    state.step = 6
    run(build_batches(2), log.callbacks(), model=model, state=state, max_steps=6)
    assert log.calls == []


def test_tokens_are_counted_over_all_batches() -> None:
    model = build_model()
    state = build_state(model)
    run(build_batches(2, 3), model=model, state=state, max_steps=3, gradient_accumulation=2)
    assert state.tokens == 3 * 50


def test_steps_are_trained_in_train_mode_after_a_validation_in_eval_mode() -> None:
    model, modes = build_model().eval(), []

    def validate(step: int) -> dict[str, float]:
        model.eval()
        return {}

    callbacks = LoopCallbacks(validate=validate, after_step=lambda step: modes.append(model.training))
    run(build_batches(2), callbacks, model=model, max_steps=3, eval_every=1)
    assert modes == [True, True, True]


def test_amp_computes_the_forward_pass_in_bfloat16_and_keeps_float32_weights() -> None:
    task = Regression()
    model = run(build_batches(4), task=task, max_steps=2, amp=True)
    assert task.seen_dtypes == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.allclose(weights(model), weights(run(build_batches(4), max_steps=2)), atol=2e-2)


def test_a_step_without_targets_changes_nothing() -> None:
    model = build_model()
    before = weights(model)
    run([{"x": torch.zeros(0, FEATURES), "y": torch.zeros(0)}], model=model, max_steps=1)
    assert torch.equal(weights(model), before)


class HalfBase(FromZero):
    """As FromZero, on a frozen base that computes in float16."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.tensor(factor, dtype=torch.float16), requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows).half() * self.base


def train_half(factor: float, batch: Batch, steps: int = 1, log: Log | None = None) -> tuple[HalfBase, TrainingState]:
    model = HalfBase(factor)
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    state = TrainingState(optimizer, build_scheduler(optimizer, "constant", 10, 0.0), build_loss_scaler(model))
    callbacks = log.callbacks() if log else LoopCallbacks()
    run([batch], callbacks, model, state=state, max_steps=steps, max_grad_norm=0.0)
    return model, state


def test_gradients_below_the_range_of_float16_are_not_lost() -> None:
    (batch,) = build_batches(4)
    batch["y"] *= 1e-5
    model, state = train_half(1e-2, batch)
    by_hand = 0.1 * 1e-2 * 2 * (batch["x"].T @ batch["y"]) / 4
    torch.testing.assert_close(model.weight.detach().squeeze(), by_hand, rtol=1e-2, atol=0.0)
    assert state.skipped_steps == 0


def test_steps_whose_gradients_float16_cannot_hold_are_left_out_and_counted() -> None:
    log, (batch,) = Log(), build_batches(4)
    batch["y"] *= 10
    model, state = train_half(1.0, batch, steps=6, log=log)
    assert 0 < state.skipped_steps < 6
    assert weights(model).abs().max() > 0
    assert state.step == 6
    counts = [metrics["train/skipped_steps"] for _, metrics in log.reports if "train/loss" in metrics]
    assert counts == [*range(1, state.skipped_steps + 1), *[state.skipped_steps] * (6 - state.skipped_steps)]
    assert log.steps("after_step") == list(range(state.skipped_steps + 1, 7))


def test_gradients_that_no_scale_makes_finite_end_a_job() -> None:
    (batch,) = build_batches(4)
    batch["x"] *= 1e30
    with pytest.raises(NonFiniteLossError, match="gradient norm"):
        train_half(60000.0, batch | {"y": batch["y"] * 1e9}, steps=30)


def test_other_precisions_are_not_scaled() -> None:
    assert not build_loss_scaler(build_model()).is_enabled()
    assert not build_loss_scaler(build_model().bfloat16()).is_enabled()


def test_weights_in_float16_are_not_trained() -> None:
    with pytest.raises(MethodError, match="wider than float16"):
        build_loss_scaler(build_model().half())


@pytest.mark.parametrize("max_tokens", [1, 20, 30, 1000])
def test_a_step_is_the_same_in_however_many_parts_its_rows_go_through(max_tokens: int) -> None:
    batches, log, parted_log = build_batches(5, 3), Log(), Log()
    settings = {"gradient_accumulation": 2, "max_steps": 3}
    whole = run(batches, log.callbacks(), task=Regression(0.25), **settings)
    parted = run(batches, parted_log.callbacks(), task=Regression(0.25), max_tokens_per_pass=max_tokens, **settings)
    torch.testing.assert_close(weights(parted), weights(whole), rtol=1e-5, atol=1e-6)
    for (step, expected), (_, found) in zip(log.reports, parted_log.reports, strict=True):
        assert found == pytest.approx(expected, rel=1e-5), step
