import pytest
import torch
from torch import Tensor

from peftsweep.memory.ledger import Category, Ledger

VOCABULARY = 1000


def on_meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def now(ledger: Ledger) -> int:
    """Bytes that are held at this moment, from the history."""
    held: dict[int, int] = {}
    for name, size in ledger.trace().events:
        held[name] = size
        if size < 0:
            del held[name]
    return sum(held.values())


def test_a_storage_is_booked_once_however_many_views_it_has() -> None:
    with Ledger() as ledger:
        tensor = on_meta(10, 20)
        views = tensor.T, tensor[2:], tensor.view(-1), tensor.detach()
    assert len(views) == 4
    assert ledger.trace().events == ((1, 800),)


def test_a_storage_is_let_go_with_its_last_holder() -> None:
    with Ledger() as ledger:
        tensor = on_meta(10, 20)
        view = tensor[2:]
        del tensor
        assert now(ledger) == 800
        del view
        assert now(ledger) == 0
    assert ledger.trace().peak_allocated_bytes == 800


def test_what_the_backward_pass_keeps_is_held_until_it_has_run() -> None:
    with Ledger() as ledger:
        weight = on_meta(10, 10).requires_grad_()
        loss = weight.exp().sum()  # exp keeps its result
        assert now(ledger) == 400 + 400 + 4
        loss.backward()
        assert now(ledger) == 400 + 400 + 4  # the gradient in its place


def test_the_peak_is_the_most_that_was_held_and_by_what() -> None:
    weight = on_meta(10, 10)
    with Ledger() as ledger:
        ledger.book([weight], Category.WEIGHTS)
        first = on_meta(5, 10)
        del first
        ledger.category = Category.OPTIMIZER
        second = on_meta(30, 10)
        del second
        ledger.category = Category.ACTIVATIONS
        third = on_meta(2, 10)
    trace = ledger.trace()
    assert third.shape == (2, 10)
    assert trace.peak_allocated_bytes == 400 + 1200
    assert {category: size for category, size in trace.at_peak.items() if size} == {
        Category.WEIGHTS: 400,
        Category.OPTIMIZER: 1200,
    }


def test_a_tensor_that_turns_out_to_be_for_something_else_changes_its_category() -> None:
    with Ledger() as ledger:
        tensor = on_meta(10, 10)
        ledger.book([tensor], Category.GRADIENTS)
        other = on_meta(1, 1)
    at_peak = ledger.trace().at_peak
    assert (at_peak[Category.GRADIENTS], at_peak[Category.ACTIVATIONS]) == (400, 4)
    assert other.is_meta
    assert len(ledger.trace().events) == 2


def test_logits_are_told_by_the_vocabulary() -> None:
    with Ledger(VOCABULARY) as ledger:
        kept = on_meta(4, VOCABULARY), on_meta(VOCABULARY, 4), on_meta(VOCABULARY)
        ledger.category = Category.OPTIMIZER
        state = on_meta(2, VOCABULARY)
    at_peak = ledger.trace().at_peak
    assert len(kept) == 3
    assert at_peak[Category.LOGITS] == 4 * 4 * VOCABULARY
    assert at_peak[Category.ACTIVATIONS] == 5 * 4 * VOCABULARY
    assert at_peak[Category.OPTIMIZER] == state.nbytes
    assert sum(at_peak.values()) == ledger.trace().peak_allocated_bytes


def test_tensors_on_the_host_are_not_booked() -> None:
    with Ledger() as ledger:
        host = torch.ones(10)
        ledger.book([host], Category.WEIGHTS)
    assert ledger.trace().events == ()


def test_questions_are_answered_no_and_numbers_are_one() -> None:
    with Ledger():
        assert not torch.isinf(on_meta(3)).any()
        assert on_meta().item() == 1.0
        assert on_meta(dtype=torch.int64).item() == 1
        assert not torch.equal(on_meta(3), on_meta(3))


def test_every_element_is_chosen() -> None:
    with Ledger():
        mask = on_meta(3, 5, dtype=torch.bool)
        assert mask.nonzero().shape == (15, 2)
        assert on_meta(3, 5)[mask].shape == (15,)
        assert on_meta(3, 5, 7)[mask].shape == (15, 7)
        assert on_meta(7, 5)[:, on_meta(5, dtype=torch.bool)].shape == (7, 5)
        assert on_meta(7, 5)[on_meta(4, dtype=torch.int64)].shape == (4, 5)


def test_a_single_random_number_has_a_value_and_more_have_none() -> None:
    with Ledger(), torch.device("meta"):
        assert torch.rand(1).item() == 0.5
        assert torch.rand(2).is_meta


def test_a_copy_to_the_host_stays_where_it_has_no_values() -> None:
    with Ledger() as ledger:
        copy = on_meta(3).cpu()
        assert copy.is_meta
        assert copy.to("cpu", torch.float64).dtype is torch.float64
    assert ledger.trace().events[1][1] == 12


def test_counts_have_as_many_rows_as_asked_for() -> None:
    with Ledger():
        counted = torch.bincount(on_meta(9, dtype=torch.int64), minlength=4)
        weighted = torch.bincount(on_meta(9, dtype=torch.int64), on_meta(9))
    assert (counted.shape, counted.dtype) == ((4,), torch.int64)
    assert weighted.dtype is torch.float32


def test_real_tensors_answer_for_themselves() -> None:
    tensor, mask = torch.tensor([0.0, 2.0, 3.0]), torch.tensor([False, True, True])
    with Ledger():
        assert tensor[1].item() == 2.0
        assert mask.any()
        assert torch.equal(tensor, tensor.clone())
        assert mask.nonzero().tolist() == [[1], [2]]
        assert tensor[mask].tolist() == [2.0, 3.0]
        assert torch.bincount(torch.tensor([0, 2, 2])).tolist() == [1, 0, 2]
        assert tensor.cpu().tolist() == [0.0, 2.0, 3.0]
        assert tensor.to(torch.int64).tolist() == [0, 2, 3]


def test_a_block_diagonal_matrix_is_made_at_once() -> None:
    with Ledger() as ledger:
        blocks = [torch.empty((3, 2), device="meta") for _ in range(4)]
        made = torch.block_diag(*blocks)
    assert made.shape == (12, 8)
    assert [size for _, size in ledger.trace().events if size > 0] == [*[4 * 6] * 4, 4 * 12 * 8]


def test_a_fourier_transform_of_a_matrix_takes_room_to_work_in_and_one_of_rows_takes_none() -> None:
    matrix, sizes = on_meta(6, 8, dtype=torch.complex64), []
    for transform in (torch.fft.ifft2, torch.fft.ifft):
        with Ledger() as ledger:
            transform(matrix)
        sizes.append([size for _, size in ledger.trace().events if size > 0])
    assert sizes == [[8 * 6 * 8] * 2, [8 * 6 * 8]]


def test_what_was_asked_before_is_answered_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same operations, on the same and on other shapes, strides, types and lists, with and without a memory of
    what they gave."""

    def everything() -> list[object]:
        found: list[Tensor] = []
        with Ledger() as ledger:
            for _ in range(2):
                for first, second in [(on_meta(6, 8), on_meta(6, 8)), (on_meta(8, 6).t(), on_meta(1, 8))]:
                    half = first.to(torch.bfloat16)
                    found += [first + second, half + second, half + 1, half + True, first @ second.t(), first.detach()]
                    found += [
                        torch.cat([first, first]),
                        torch.cat([first, first], dim=1),
                        first.sum(0),
                        first.sum((0, 1)),
                    ]
                    found += [*first.sort(), *first.chunk(2), first.reshape(4, 12), first.t().reshape(48), first.exp_()]
                    found += [torch.stack([first, first]), first.new_zeros(3), first.expand(2, 6, 8).contiguous()]
                    pool = torch.ops.aten.avg_pool2d.default  # lists beside each other, told apart by their lengths
                    found += [pool(on_meta(1, 6, 8), [2], [1, 1]), pool(on_meta(1, 6, 8), [2, 1], [1])]
        alike = [(one.shape, one.stride(), one.dtype) for one in found]
        storages = [one.untyped_storage()._cdata for one in found]
        return [*alike, [storages.index(one) for one in storages], ledger.trace()]

    remembered = everything()
    monkeypatch.setattr(Ledger, "_result", lambda self, func, args, kwargs: func(*args, **kwargs))
    assert remembered == everything()
