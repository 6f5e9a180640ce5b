"""Every method on two ranks that hold the model in parts, and what the table of the package says of it."""

import pytest
from method_marks import QUICK
from rank_matrix import all_methods, measure

from peftsweep.methods.known_sharding import is_shardable

pytestmark = [pytest.mark.process, pytest.mark.slow]
MOST = 1e-4


def differences(seen):
    return {name: found for name, found in seen.items() if "untried" not in found}


def test_two_ranks_lose_what_one_process_loses_whatever_the_method():
    seen = measure(all_methods(), size=2, steps=3)
    assert set(seen) == set(all_methods())
    for name, found in differences(seen).items():
        assert "error" not in found, (name, found)
        assert max(found.values()) < MOST, (name, found)
        assert is_shardable(name), name


def test_so_do_three():
    for name, found in differences(measure([name for name in QUICK if name != "head"], size=3, steps=3)).items():
        assert max(found.values()) < MOST, (name, found)
