import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from peftsweep.config.schema import HookConfig
from peftsweep.errors import MethodError
from peftsweep.methods.attach import AttachedMethod, attach_method
from peftsweep.methods.catalog import method_files, read_method_file
from peftsweep.methods.hooks.by_name import build_hook
from peftsweep.methods.hooks.interface import HookContext
from peftsweep.methods.hooks.rank_allocation import non_orthogonality


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 128}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=100))


def batch_of(seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(0, 100, (4, 24), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def attach(name: str, steps: int = 20, batches: int = 2) -> AttachedMethod:
    method = read_method_file(method_files()[name])
    model = small_llama()
    torch.manual_seed(1)
    data = [batch_of(seed) for seed in range(batches)]
    return attach_method(model, method, total_steps=steps, calibration_batches=data)


def run(attached: AttachedMethod, steps: range, optimizer: torch.optim.Optimizer | None = None) -> None:
    weights = [weight for weight in attached.model.parameters() if weight.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(weights, lr=1e-2)
    for step in steps:
        attached.model(**batch_of(step)).loss.backward()
        optimizer.step()
        attached.hook.after_step(attached.model, step)
        optimizer.zero_grad()


def test_an_unknown_hook_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(MethodError, match="Did you mean lora_plus"):
        build_hook(HookConfig("lora_pluss"))


def test_an_unknown_hook_argument_is_refused_by_name() -> None:
    with pytest.raises(MethodError, match=r"takes \['lr_ratio'\], got 'ratio'"):
        build_hook(HookConfig("lora_plus", {"ratio": 2}))


@pytest.mark.parametrize(("layers", "stride"), [(28, 14), (4, 2), (1, 1)])
def test_a_layer_share_is_counted_in_the_models_layers(layers: int, stride: int) -> None:
    model = nn.Module()
    model.config = LlamaConfig(num_hidden_layers=layers)
    hook = build_hook(HookConfig("layer_shares", {"shares": {"stride_A": 0.5}}))
    assert hook.configure({}, HookContext(model, total_steps=1)) == {"stride_A": stride}


def test_an_argument_that_the_user_sets_wins_over_a_share() -> None:
    hook = build_hook(HookConfig("layer_shares", {"shares": {"stride_A": 0.5}}))
    assert hook.configure({"stride_A": 1}, HookContext(small_llama(), total_steps=1)) == {"stride_A": 1}


@pytest.mark.parametrize(("steps", "expected"), [(5000, (200, 500, 5000)), (300, (12, 30, 300)), (1, (0, 0, 1))])
def test_adalora_follows_the_length_of_the_run(steps: int, expected: tuple[int, int, int]) -> None:
    config = attach("adalora", steps=steps).model.peft_config["default"]
    assert (config.tinit, config.tfinal, config.total_step) == expected


def test_adalora_cuts_ranks_down_to_its_target() -> None:
    attached = attach("adalora", steps=20)
    run(attached, range(1, 21))
    config = attached.model.peft_config["default"]
    kept = sum(sum(row) for row in config.rank_pattern.values())
    assert kept == config.target_r * len(config.rank_pattern)


def test_adamss_drops_subspaces_down_to_its_target() -> None:
    attached = attach("adamss-asa", steps=20)
    before = len(attached.trainable_parameters())
    run(attached, range(1, 21))
    assert len(attached.trainable_parameters()) < before


@pytest.mark.parametrize("name", ["pissa", "olora", "corda", "lora-ga"])
def test_saving_a_method_that_changes_its_base_leaves_the_model_as_it_was(name: str, tmp_path: Path) -> None:
    """A job saves first and scores then."""
    attached = attach(name)
    run(attached, range(1, 4))
    with torch.no_grad():
        before = attached.model(**batch_of()).logits
        attached.save(tmp_path / "adapter")
        after = attached.model(**batch_of()).logits
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["adalora", "adamss-asa", "velora", "monteclora"])
def test_a_resumed_run_goes_on_as_an_uninterrupted_one(name: str) -> None:
    first, second = attach(name), attach(name)
    run(first, range(1, 5))
    second.model.load_state_dict(first.model.state_dict())
    second.hook.restore(second.model, copy.deepcopy(first.hook.state(first.model)))
    for attached in (first, second):
        torch.manual_seed(7)  # MonteCLoRA draws while it trains
        run(attached, range(5, 9))
    expected, found = first.model.state_dict(), second.model.state_dict()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


@pytest.mark.parametrize("name", ["adalora", "adamss-asa", "velora", "monteclora"])
def test_a_checkpoint_of_a_methods_state_is_read_without_running_code(name: str, tmp_path: Path) -> None:
    attached = attach(name)
    run(attached, range(1, 5))
    state = attached.hook.state(attached.model)
    assert state
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True).keys() == state.keys()


def test_lora_fa_freezes_a() -> None:
    attached = attach("lora-fa")
    attached.hook.build_optimizer(attached.model, torch.optim.AdamW, 1e-3, weight_decay=0.0)
    assert {name.split(".")[-3] for name in attached.trainable_parameters()} == {"lora_B"}


def test_lora_plus_trains_b_faster_and_decays_both() -> None:
    attached = attach("lora-plus")
    optimizer = attached.hook.build_optimizer(attached.model, torch.optim.AdamW, 1e-3, weight_decay=0.1)
    assert optimizer is not None
    used = {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups if group["params"]}
    assert used == {(1e-3, 0.1), (16e-3, 0.1)}


def test_the_riemannian_optimizer_steps_otherwise_than_adamw() -> None:
    ends = []
    for own in (True, False):
        attached = attach("lora-riemannian")
        weights = list(attached.trainable_parameters().values())
        plain = torch.optim.SGD(weights, lr=0.1)
        run(
            attached, range(1, 4), attached.hook.build_optimizer(attached.model, torch.optim.SGD, 0.1) if own else plain
        )
        ends.append(torch.cat([weight.flatten() for weight in weights]))
    assert not torch.allclose(*ends)


@pytest.mark.parametrize("name", ["kasa", "monteclora", "adalora", "shadow"])
def test_a_methods_own_loss_arrives_in_the_models_loss(name: str) -> None:
    attached = attach(name)
    batch = batch_of()
    outputs = attached.model.train()(**batch)
    plain = nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert outputs.loss - plain > 1e-3


def test_eva_starts_from_the_data() -> None:
    starts = []
    for seed in (0, 1):
        method = read_method_file(method_files()["eva"])
        torch.manual_seed(1)
        attached = attach_method(small_llama(), method, total_steps=5, calibration_batches=[batch_of(seed)])
        starts.append(
            next(w for n, w in attached.trainable_parameters().items() if "layers.0.self_attn.q_proj.lora_A" in n)
        )
    assert starts[0].shape != starts[1].shape or not torch.allclose(*starts)


def test_eva_refuses_batches_that_peft_would_go_round_for_ever() -> None:
    small = {key: tensor[:1, :8] for key, tensor in batch_of().items()}
    method = read_method_file(method_files()["eva"])
    with pytest.raises(MethodError, match="at least rank x rho = 64 tokens in the loss, got 8"):
        attach_method(small_llama(), method, total_steps=5, calibration_batches=[small])


@pytest.mark.parametrize("name", ["corda", "lora-ga"])
def test_calibration_leaves_nothing_behind_on_the_base_layers(name: str) -> None:
    attached = attach(name)
    left = [key for module in attached.model.modules() for key in vars(module)]
    assert not {"eigens", "_peft_loraga_grad", "covariance_matrix"} & set(left)
    assert {weight.grad for weight in attached.model.parameters()} == {None}


@pytest.mark.parametrize("name", ["eva", "corda", "lora-ga", "trainable-tokens", "cpt", "cartridge"])
def test_a_method_that_looks_at_data_says_so_when_there_is_none(name: str) -> None:
    with pytest.raises(MethodError, match="no calibration batches"):
        attach(name, batches=0)


def test_trainable_tokens_are_the_most_frequent_ones() -> None:
    ids = torch.tensor([[5, 5, 5, 7, 7, 9]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]), "labels": ids}
    hook = build_hook(HookConfig("frequent_tokens", {"tokens": 2}))
    assert hook.configure({}, HookContext(small_llama(), 1, batches=[batch])) == {"token_indices": [5, 7]}


def test_cpt_lets_questions_move_and_keeps_answers() -> None:
    ids = torch.tensor([[1, 2, 3, 4]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([[-100, -100, 3, 4]])}
    hook = build_hook(HookConfig("context_tokens", {"tokens": 3}))
    found = hook.configure({}, HookContext(small_llama(), 1, batches=[batch]))
    assert found == {"cpt_token_ids": [1, 2, 3], "cpt_tokens_type_mask": [2, 2, 4]}


@pytest.mark.skipif(torch.cuda.is_available(), reason="LoftQ works where there is a GPU")
def test_loftq_without_a_gpu_is_refused_with_the_reason() -> None:
    with pytest.raises(MethodError, match="LoftQ quantises the base weights with bitsandbytes on a GPU"):
        attach("loftq")


@pytest.mark.parametrize("name", ["kasa", "monteclora", "adalora"])
def test_a_loss_that_the_models_outputs_hold_is_not_asked_for_again(name: str) -> None:
    attached = attach(name)
    assert attached.hook.own_loss(attached.model) is None


def test_adaloras_penalty_is_the_one_that_peft_adds_for_language_models() -> None:
    attached = attach("adalora")
    batch = batch_of()
    outputs = attached.model.train()(**batch)
    plain = nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(non_orthogonality(attached.model), outputs.loss - plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("width", "expected"), [(256, 128), (192, 96), (48, 48), (7, 7)])
def test_an_argument_that_must_divide_layers_is_as_large_as_they_allow(width: int, expected: int) -> None:
    model = nn.ModuleDict({"first": nn.Linear(width, 2 * width), "second": nn.Linear(3 * width, width)})
    hook = build_hook(HookConfig("common_divisor", {"argument": "vector_length", "most": 128}))
    arguments = hook.configure({"target_modules": ["first", "second"]}, HookContext(model, total_steps=1))
    assert arguments["vector_length"] == expected


def test_the_half_of_subspaces_is_counted_in_targeted_layers() -> None:
    hook = build_hook(HookConfig("rank_allocation", {"per_target": {"asa_target_subspaces": 16.0}}))
    found = hook.configure({"target_modules": ["q_proj", "v_proj"]}, HookContext(small_llama(), total_steps=10))
    assert found["asa_target_subspaces"] == 16 * 2 * 2


def test_roles_become_modules_inside_an_argument() -> None:
    config = attach("bdlora").model.peft_config["default"].use_bdlora
    assert config.target_modules_bd_a == ["o_proj", "down_proj"]
    assert config.nblocks == 2


def test_the_shadow_of_a_language_model_keeps_its_own_width() -> None:
    hook = build_hook(HookConfig("shadow_heads"))
    given = {"shadow_hidden_size": 32, "shadow_num_attention_heads": 8}
    assert hook.configure(given, HookContext(small_llama(), total_steps=1)) == given


def test_calibration_runs_the_model_as_the_task_does() -> None:
    seen = []

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        seen.append(tuple(batch["input_ids"].shape))
        return model(**batch).loss

    padded = {**batch_of(), "attention_mask": torch.tensor([[1] * 24] * 3 + [[1] * 10 + [0] * 14])}
    method = read_method_file(method_files()["corda"])
    attach_method(small_llama(), method, total_steps=5, calibration_batches=[padded], loss=loss)
    assert seen == [(1, 24), (1, 24), (1, 24), (1, 10)]
