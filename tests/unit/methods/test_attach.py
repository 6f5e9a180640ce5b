import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from peftsweep.config.schema import HookConfig, MethodConfig
from peftsweep.errors import MethodError, is_out_of_memory
from peftsweep.methods.attach import attach_method, calibration_batches_wanted, enable_gradient_checkpointing
from peftsweep.methods.catalog import method_files, read_method_file

# Trainable parameters on Llama-3.2-3B as the PEFT library's benchmark publishes them (MetaMathQA, July 2026).
PUBLISHED_TRAINABLE = {
    "lora": 9_175_040,
    "rslora": 18_350_080,
    "lily": 9_485_280,
    "adalora": 18_353_664,
    "miss": 7_340_032,
    "ia3": 286_720,
    "vera": 129_024,
    "beft": 28_672,
}


def small_llama(**sizes: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    defaults = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}
    return LlamaForCausalLM(LlamaConfig(**defaults | {"num_hidden_layers": 2, "vocab_size": 100} | sizes))


def lora(**arguments: object) -> MethodConfig:
    return MethodConfig(name="lora", peft_type="LORA", peft={"r": 4, **arguments})


def problem_of(method: MethodConfig, model: nn.Module | None = None) -> str:
    with pytest.raises(MethodError) as caught:
        attach_method(model or small_llama(), method, total_steps=10)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(PUBLISHED_TRAINABLE))
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    sizes = LlamaConfig(
        hidden_size=3072,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=8192,
        num_hidden_layers=28,
        vocab_size=128_256,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        method = read_method_file(method_files()[name])
        attached = attach_method(LlamaForCausalLM(sizes), method, total_steps=5000, adapter_float32=False)
    assert attached.count_parameters()[0] == PUBLISHED_TRAINABLE[name]


def test_an_unknown_argument_is_answered_with_the_nearest_one() -> None:
    text = problem_of(lora(lora_alfa=8))
    assert "method.peft.lora_alfa" in text
    assert "Did you mean lora_alpha" in text


def test_all_unknown_arguments_are_named_at_once() -> None:
    text = problem_of(lora(lora_alfa=8, drop=0.1))
    assert "lora_alfa" in text
    assert "method.peft.drop" in text


def test_an_unknown_type_is_answered_with_the_nearest_one() -> None:
    assert "Did you mean LORA" in problem_of(MethodConfig(name="mine", peft_type="LORRA"))


def test_a_rank_above_the_smaller_side_of_a_layer_is_refused() -> None:
    method = MethodConfig(name="lora", peft_type="LORA", capacity=33, capacity_knob="rank", peft={"r": 33})
    text = problem_of(method)
    assert "at most 32" in text
    assert "v_proj" in text
    assert "got 33 (from method.capacity)" in text


def test_a_rank_equal_to_the_smaller_side_is_accepted() -> None:
    method = MethodConfig(name="lora", peft_type="LORA", capacity=32, capacity_knob="rank", peft={"r": 32})
    attach_method(small_llama(), method, total_steps=10)


def test_a_block_size_that_does_not_divide_is_refused_rather_than_adjusted() -> None:
    method = MethodConfig(name="oft", peft_type="OFT", peft={"oft_block_size": 48})
    assert "Invalid `oft_block_size` (48)" in problem_of(method)


def test_missing_target_modules_are_refused_by_name() -> None:
    assert "no_such_layer" in problem_of(lora(target_modules=["no_such_layer"]))


def test_an_architecture_that_nobody_knows_is_refused_with_the_way_out() -> None:
    model = small_llama()
    model.config.model_type = "newformer"
    text = problem_of(lora(), model)
    assert "'newformer'" in text
    assert "target_modules" in text


def test_a_gpu_out_of_memory_is_still_known_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("peftsweep.methods.attach.get_peft_model", refuse)
    with pytest.raises(MethodError) as caught:
        attach_method(small_llama(), lora(), total_steps=10)
    assert is_out_of_memory(caught.value)


def test_a_role_names_the_targets() -> None:
    method = MethodConfig(name="lora", peft_type="LORA", targets="mlp", peft={"r": 4})
    names = attach_method(small_llama(), method, total_steps=10).trainable_parameters()
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names} == {"gate_proj", "up_proj", "down_proj"}


def test_an_unknown_role_is_refused_with_the_known_ones() -> None:
    assert "attention, mlp, linear" in problem_of(MethodConfig(name="lora", peft_type="LORA", targets="mpl"))


def test_an_architecture_that_peft_does_not_know_falls_back_to_our_table() -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, num_hidden_layers=2, vocab_size=100))
    model.config.model_type = "smollm3"  # same layer names; absent from peft's tables
    names = attach_method(model, lora(), total_steps=10).trainable_parameters()
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names} == {"q_proj", "v_proj"}


def test_full_fine_tuning_trains_all_weights_in_their_own_dtype() -> None:
    model = small_llama().to(torch.bfloat16).requires_grad_(False)
    attached = attach_method(model, MethodConfig(name="full"), total_steps=10)
    assert attached.count_parameters()[0] == attached.count_parameters()[1]
    assert {weight.dtype for weight in attached.trainable_parameters().values()} == {torch.bfloat16}


def test_full_fine_tuning_of_quantised_weights_is_refused() -> None:
    model = small_llama()
    model.lm_head.weight = nn.Parameter(torch.zeros(100, 64, dtype=torch.int8), requires_grad=False)
    assert "floating point" in problem_of(MethodConfig(name="full"), model)


@pytest.mark.parametrize(("adapter_float32", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_adapter_weights_take_the_dtype_asked_for(adapter_float32: bool, dtype: torch.dtype) -> None:
    model = small_llama().to(torch.bfloat16)
    attached = attach_method(model, lora(), total_steps=10, adapter_float32=adapter_float32)
    assert {weight.dtype for weight in attached.trainable_parameters().values()} == {dtype}


def test_the_seed_moves_the_initialisation() -> None:
    starts = []
    for seed in (0, 0, 1):
        model = small_llama()
        torch.manual_seed(seed)
        weights = attach_method(model, lora(), total_steps=10).trainable_parameters()
        starts.append(next(weight for name, weight in weights.items() if "lora_A" in name))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_only_methods_that_look_at_data_ask_for_batches() -> None:
    assert calibration_batches_wanted(lora()) == 0
    assert calibration_batches_wanted(MethodConfig(name="eva", hook=HookConfig("eva", {"batches": 3}))) == 3


@pytest.mark.parametrize(("adapter_float32", "moves"), [(True, True), (False, False)])
def test_norms_beside_a_16_bit_base_move_only_in_float32(adapter_float32: bool, moves: bool) -> None:
    model = small_llama().to(torch.bfloat16).requires_grad_(False)
    method = read_method_file(method_files()["ln-tuning"])
    attached = attach_method(model, method, total_steps=10, adapter_float32=adapter_float32)
    before = [weight.detach().clone() for weight in attached.trainable_parameters().values()]
    ids = torch.arange(24).reshape(2, 12)
    attached.model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.AdamW(attached.trainable_parameters().values(), lr=1e-4, weight_decay=0).step()
    after = attached.trainable_parameters().values()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True)) is moves


def test_gradient_checkpointing_gives_adapters_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = small_llama().requires_grad_(False)
        if checkpointing:
            enable_gradient_checkpointing(model)
        assert model.is_gradient_checkpointing is checkpointing
        torch.manual_seed(0)
        attached = attach_method(model, lora(), total_steps=10)
        ids = torch.arange(24).reshape(2, 12)
        attached.model.train()(input_ids=ids, labels=ids).loss.backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in attached.trainable_parameters().values()]))
    assert gradients[0].norm() > 0
    torch.testing.assert_close(gradients[1], gradients[0])
