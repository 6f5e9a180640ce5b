"""The stand-ins against torch's own functions, on small real tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from peftsweep.memory.cuda_kernels import STAND_INS, kernels_as_on_cuda
from peftsweep.memory.ledger import Category, Ledger

BATCH, HEADS, SEQUENCE, WIDTH = 2, 6, 10, 8
BYTES = 4


def filled(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype).requires_grad_()


def described(tensors: list[Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def with_gradients(compute: Callable[[], Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """What is computed, and the gradients of its inputs."""
    found = compute()
    gradients = torch.autograd.grad(found.sum(), inputs)
    return [found, *gradients]


ATTENTION: dict[str, dict[str, object]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean mask": {"attn_mask": torch.ones(BATCH, 1, SEQUENCE, SEQUENCE, dtype=torch.bool)},
    "additive mask": {"attn_mask": torch.zeros(BATCH, 1, SEQUENCE, SEQUENCE)},
}


@pytest.mark.parametrize("key_heads", [HEADS, 2, 1], ids=["own keys", "shared keys", "one key"])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_has_the_shapes_of_torchs_own(case: str, key_heads: int) -> None:
    query, key, value = (filled(BATCH, heads, SEQUENCE, WIDTH) for heads in (HEADS, key_heads, key_heads))
    options = ATTENTION[case] | {"enable_gqa": key_heads != HEADS}

    def attend() -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, **options)

    own = with_gradients(attend, [query, key, value])
    with kernels_as_on_cuda():
        stand_in = with_gradients(attend, [query, key, value])
    assert described(stand_in) == described(own)


def test_attention_may_read_more_keys_than_queries_and_values_of_another_width() -> None:
    query, key, value = filled(BATCH, HEADS, 1, 8), filled(BATCH, HEADS, SEQUENCE, 8), filled(BATCH, HEADS, SEQUENCE, 4)

    def attend() -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value)

    own = with_gradients(attend, [query, key, value])
    with kernels_as_on_cuda():
        stand_in = with_gradients(attend, [query, key, value])
    assert described(stand_in) == described(own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_weight", [True, False])
def test_rms_norm_has_the_shapes_of_torchs_own(dtype: torch.dtype, has_weight: bool) -> None:
    states, weight = filled(BATCH, SEQUENCE, WIDTH, dtype=dtype), filled(WIDTH, dtype=dtype)
    inputs = [states, weight] if has_weight else [states]

    def norm() -> Tensor:
        return functional.rms_norm(states, (WIDTH,), weight if has_weight else None)

    own = with_gradients(norm, inputs)
    with kernels_as_on_cuda():
        stand_in = with_gradients(norm, inputs)
    assert described(stand_in) == described(own)


def kept_bytes(compute: Callable[[], Tensor]) -> tuple[int, int]:
    """(what is held after the forward pass, the most that was held up to the end of the backward pass), in bytes."""
    with Ledger() as ledger, kernels_as_on_cuda():
        result = compute()
        forward = ledger.trace().peak_allocated_bytes
        result.backward(torch.empty_like(result))
    return forward, ledger.trace().at_peak[Category.ACTIVATIONS]


def test_attention_keeps_its_result_and_one_number_a_row_and_never_a_score_for_each_pair_of_tokens() -> None:
    tokens = 1000
    query, key, value = (torch.empty(1, 1, tokens, WIDTH, device="meta", requires_grad=True) for _ in range(3))
    forward, peak = kept_bytes(lambda: functional.scaled_dot_product_attention(query, key, value, is_causal=True))
    one = tokens * WIDTH * BYTES
    assert forward == one + tokens * BYTES  # beside its inputs, which were there before
    assert peak < tokens * tokens * BYTES / 4


def test_rms_norm_keeps_one_number_a_row() -> None:
    states = torch.empty(SEQUENCE, WIDTH, device="meta", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(WIDTH, device="meta", dtype=torch.bfloat16, requires_grad=True)
    forward, _ = kept_bytes(lambda: functional.rms_norm(states, (WIDTH,), weight))
    assert forward == SEQUENCE * WIDTH * 2 + SEQUENCE * BYTES


def test_torchs_own_functions_come_back_even_after_an_error() -> None:
    own = {place: getattr(*place) for place in STAND_INS}

    def fail_inside() -> None:
        with kernels_as_on_cuda():
            assert all(getattr(*place) is not function for place, function in own.items())
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert {place: getattr(*place) for place in STAND_INS} == own


def test_a_fused_step_of_the_optimizer_is_followed_and_makes_nothing_but_moments() -> None:
    weight = torch.nn.Parameter(torch.empty(SEQUENCE, WIDTH, device="meta"))
    weight.grad = torch.empty_like(weight)
    ledger = Ledger()
    with ledger, kernels_as_on_cuda():
        torch.optim.AdamW([weight], fused=True).step()
    moments = 2 * SEQUENCE * WIDTH * BYTES
    assert moments <= ledger.trace().peak_allocated_bytes <= moments + 64


def test_a_sparse_tensor_takes_its_values_and_leaves_a_dense_sum() -> None:
    weight, values = filled(6, 8), filled(3)
    indices = torch.tensor([[0, 2, 5], [1, 1, 7]])

    def add() -> Tensor:
        return weight + torch.sparse_coo_tensor(indices, values, (6, 8))

    own = with_gradients(add, [weight, values])
    with kernels_as_on_cuda():
        stand_in = with_gradients(add, [weight, values])
    assert described(stand_in) == described(own)
    with kernels_as_on_cuda(), torch.device("meta"), Ledger() as ledger:
        values, indices = torch.empty(3), torch.empty((2, 3), dtype=torch.int64)
        torch.sparse_coo_tensor(indices, values, (600, 800))
    assert ledger.trace().peak_allocated_bytes < 600 * 800
