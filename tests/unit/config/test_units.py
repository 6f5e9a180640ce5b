"""Amounts as people write them."""

import pytest

from peftsweep.config.units import parse_margin
from peftsweep.errors import ConfigError


@pytest.mark.parametrize(("text", "margin"), [("2%", 0.02), ("0.02", 0.02), (" 1.5 % ", 0.015), ("0", 0.0)])
def test_a_margin_is_a_number_or_a_percentage(text, margin):
    assert parse_margin(text) == pytest.approx(margin)


@pytest.mark.parametrize("text", ["-1%", "-0.01", "2GB", "2 points", "", "nan", "inf", "%"])
def test_what_is_no_difference_of_scores_is_told_with_a_way_out(text):
    with pytest.raises(ConfigError, match=r"confirm\.margin=2%"):
        parse_margin(text)
