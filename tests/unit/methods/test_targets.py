import pytest
from peft import LoraConfig, PeftType
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import constants
from tiny_transformer import tiny_transformer
from torch import nn

from peftsweep.errors import MethodError
from peftsweep.methods.targets import TARGETS, layers_named_by, modules_of_role, with_targets

FLUX2 = "Flux2Transformer2DModel"


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


REFERENCE_LINEAR = {  # of the PEFT library's image benchmark, in nearly all of its experiments
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    "to_qkv_mlp_proj", "linear_in", "linear_out",
}  # fmt: skip


@pytest.mark.parametrize("peft_type", [PeftType.LORA, PeftType.OFT, PeftType.OSF, PeftType.VERA])
def test_a_diffusion_transformer_gets_the_reference_benchmarks_targets(peft_type: PeftType) -> None:
    assert set(with_targets(peft_type, {}, None, FLUX2)["target_modules"]) == REFERENCE_LINEAR


def test_all_roles_of_a_language_model_are_roles_of_a_diffusion_transformer_too() -> None:
    assert TARGETS[FLUX2].keys() == TARGETS["llama"].keys()


@pytest.mark.parametrize("role", sorted(TARGETS["llama"]))
def test_every_name_of_a_role_is_a_module_of_the_diffusion_transformer(role: str) -> None:
    modules = TARGETS[FLUX2][role]
    model = tiny_transformer()
    for name in [modules] if isinstance(modules, str) else modules:
        config = LoraConfig(target_modules=name if isinstance(modules, str) else [name])
        assert [key for key, _ in model.named_modules() if check_target_module_exists(config, key)]


def test_new_biases_go_to_every_linear_layer_of_the_blocks() -> None:
    model = tiny_transformer()
    named = set(layers_named_by({"target_modules": TARGETS[FLUX2]["bias"]}, model))
    blocks = [key for key, module in model.named_modules() if isinstance(module, nn.Linear) and "blocks." in key]
    assert named == set(blocks)


def test_a_role_is_a_copy_that_peft_may_change() -> None:
    modules_of_role("mlp", "llama").append("x")
    assert "x" not in TARGETS["llama"]["mlp"]
