import pytest
from peft import PeftType
from peft.utils import constants

from peftsweep.errors import MethodError
from peftsweep.methods.targets import TARGETS, with_targets


def test_a_users_own_targets_stay() -> None:
    assert with_targets(PeftType.LORA, {"target_modules": ["o_proj"]}, "mlp", "llama") == {"target_modules": ["o_proj"]}


def test_a_type_without_targets_gets_none() -> None:
    assert with_targets(PeftType.PREFIX_TUNING, {}, None, "newformer") == {}


def test_pefts_choice_is_spelled_out() -> None:
    assert with_targets(PeftType.LORA, {}, None, "gpt2") == {"target_modules": ["c_attn"]}


def test_ia3_gets_its_feedforward_modules_too() -> None:
    expected = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    assert with_targets(PeftType.IA3, {}, None, "smollm3") == expected


@pytest.mark.parametrize(
    ("peft_type", "expected"),
    [
        (PeftType.LN_TUNING, ["input_layernorm", "post_attention_layernorm", "norm"]),
        (PeftType.BEFT, ["v_proj"]),
        (PeftType.VERA, ["q_proj", "v_proj"]),
    ],
)
def test_each_type_falls_back_to_its_own_kind_of_module(peft_type: PeftType, expected: list[str]) -> None:
    assert with_targets(peft_type, {}, None, "smollm3") == {"target_modules": expected}


def test_the_fallback_is_what_peft_does_for_llama() -> None:
    assert TARGETS["llama"]["query_value"] == constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["llama"]
    assert TARGETS["llama"]["norm"] == constants.TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING["llama"]
    assert TARGETS["llama"]["ia3"] == constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING["llama"]


def test_an_unknown_architecture_with_a_role_names_both() -> None:
    with pytest.raises(MethodError, match=r"'newformer' \(from method.targets=mlp\)"):
        with_targets(PeftType.LORA, {}, "mlp", "newformer")
