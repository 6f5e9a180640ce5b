import json

import peft
import pytest
import torch

from peftsweep.config.schema import MethodConfig
from peftsweep.methods.capabilities import Capabilities, find_capabilities
from peftsweep.methods.catalog import method_files, read_method_file
from peftsweep.methods.known_capabilities import SHIPPED_FILE, capability_key, try_methods


def capabilities_of(name: str) -> Capabilities:
    return find_capabilities(read_method_file(method_files()[name]))


@pytest.mark.parametrize(
    ("name", "expected"), [("lora", True), ("oft", True), ("lily", False), ("prompt-tuning", False)]
)
def test_mergeable_is_found_by_merging(name: str, expected: bool) -> None:
    assert capabilities_of(name).mergeable is expected


@pytest.mark.parametrize(("name", "expected"), [("lora", True), ("c3a", True), ("ia3", False), ("kasa", False)])
def test_conversion_to_lora_is_pefts_answer_for_the_variant(name: str, expected: bool) -> None:
    assert capabilities_of(name).convertible_to_lora is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("lora", True), ("pissa", False), ("corda", False), ("c3a", False), ("ln-tuning", True), ("prefix-tuning", True)],
)
def test_a_quantised_base_is_refused_where_initialisation_reads_its_weights(name: str, expected: bool) -> None:
    assert capabilities_of(name).quantized_base is expected


def test_layer_kinds_are_those_that_survive_a_forward_pass() -> None:
    assert capabilities_of("loha").layers == ("Linear", "Conv1d", "Conv2d")


def test_what_a_single_layer_cannot_tell_is_unknown() -> None:
    assert capabilities_of("adaption-prompt") == Capabilities(None, None, None, ())


def test_full_fine_tuning_needs_no_peft() -> None:
    assert find_capabilities(MethodConfig(name="full")).mergeable is True


def test_asking_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.random.get_rng_state()
    capabilities_of("lora")
    assert torch.equal(torch.random.get_rng_state(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", method_files())
def test_what_is_kept_of_a_built_in_method_is_what_peft_tells(name: str) -> None:
    kept, method = json.loads(SHIPPED_FILE.read_text()), read_method_file(method_files()[name])
    if not any(key.startswith(f"{peft.__version__} ") for key in kept):
        pytest.skip("the installed peft is not the one of constraints.txt")
    assert kept[capability_key(method)] == json.loads(json.dumps(try_methods([method])))[capability_key(method)]
