import pytest

from peftsweep.statistics.intervals import mean_interval, share_interval


def test_the_interval_of_a_share_is_wilsons() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3: 81 of 263
    assert share_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize("right", [0, 20])
def test_a_share_of_none_or_all_still_has_a_width_within_0_and_1(right: int) -> None:
    low, high = share_interval(right, 20)
    assert 0 <= low < high <= 1


def test_the_interval_of_a_mean_is_students() -> None:
    # mean 3, standard deviation sqrt(2.5), t(0.975, 4) = 2.776445
    low, high = mean_interval([1, 2, 3, 4, 5])
    assert (low, high) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-5)


@pytest.mark.parametrize("values", [[0.4], [0.4, 0.4, 0.4]])
def test_values_that_do_not_vary_are_their_own_interval(values: list[float]) -> None:
    assert mean_interval(values) == pytest.approx((0.4, 0.4))
