"""What methods and exchange use of peft's insides, each by name: a test of this file fails when peft moves one."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from peft import AdaLoraConfig, AdamssConfig, LoraConfig, get_peft_model
from peft.config import PeftConfigMixin
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, constants
from torch import nn

from peftsweep.methods.hooks.rank_allocation import ADALORA_AVERAGES, ADAMSS_AVERAGES

# Module of peft -> names in it, dotted for what a class has.
NAMES = {
    "peft": ["PeftModel.active_peft_config", "convert_to_lora", "save_as_lora"],
    "peft.tuners.lora": ["LoraModel._get_kasa_loss", "LoraModel._get_monteclora_loss", "LoraLayer"],
    "peft.tuners.lora.monteclora": ["MontecloraSampler"],
    "peft.tuners.lora.eva": ["initialize_lora_eva_weights"],
    "peft.tuners.lora.corda": ["preprocess_corda"],
    "peft.tuners.lora.loraga": ["preprocess_loraga"],
    "peft.tuners.adalora": ["AdaLoraModel.update_and_allocate"],
    "peft.tuners.adamss": ["AdamssModel.update_and_allocate"],
    "peft.tuners.ln_tuning.layer": ["LNTuningLayer"],
    "peft.tuners.tuners_utils": [
        "BaseTuner.supports_lora_conversion",
        "BaseTuner.inject_adapter",
        "BaseTunerLayer.get_base_layer",
        "check_target_module_exists",
    ],
    "peft.utils.constants": [
        "TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING",
        "TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING",
    ],
}


class Layer(nn.Module):
    """A model of one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "custom"}
        self.linear = nn.Linear(8, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs)


@pytest.mark.parametrize("module", NAMES)
def test_peft_still_has_the_names(module: str) -> None:
    for name in NAMES[module]:
        found: object = importlib.import_module(module)
        for part in name.split("."):
            assert hasattr(found, part), f"peft moved {module}: {name}"
            found = getattr(found, part)


def test_every_type_has_a_configuration_and_a_tuner() -> None:
    for peft_type in PEFT_TYPE_TO_TUNER_MAPPING:
        assert issubclass(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)], PeftConfigMixin)
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA].target_module_mapping["llama"]
    assert constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING["llama"]


def test_adalora_keeps_its_averages_where_checkpoints_look_for_them() -> None:
    config = AdaLoraConfig(target_modules=["linear"], total_step=10, tinit=1, tfinal=1)
    allocator = get_peft_model(Layer(), config).base_model.rankallocator
    for name in ADALORA_AVERAGES:
        assert isinstance(getattr(allocator, name), dict), f"peft moved RankAllocator.{name}"
    assert config.orth_reg_weight > 0


def test_adamss_keeps_its_averages_where_checkpoints_look_for_them() -> None:
    model = get_peft_model(Layer(), AdamssConfig(target_modules=["linear"], r=4, num_subspaces=2, use_asa=True))
    layers = [module for module in model.modules() if hasattr(module, ADAMSS_AVERAGES[0])]
    assert layers, f"peft moved {ADAMSS_AVERAGES[0]}"
    for name in ADAMSS_AVERAGES:
        assert "default" in getattr(layers[0], name), f"peft moved {name}"


def test_a_monteclora_sampler_counts_the_noise_it_used() -> None:
    module = importlib.import_module("peft.tuners.lora.monteclora")
    assert "self.sampler" in inspect.getsource(module.MontecloraSampler), "peft moved MontecloraSampler.sampler"
    assert "self.index" in inspect.getsource(module), "peft moved MontecloraSampler.sampler.index"


def test_velora_marks_the_layers_that_have_fixed_their_projection() -> None:
    from peft import VeloraConfig

    config = LoraConfig(target_modules=["linear"], velora_config=VeloraConfig(num_groups=2))
    model = get_peft_model(Layer(), config)
    assert any("lora_velora_initialized" in vars(module) for module in model.modules())


def test_eva_takes_the_functions_that_a_diffusion_model_needs() -> None:
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    needed = {"forward_fn", "prepare_model_inputs_fn", "prepare_layer_inputs_fn", "show_progress_bar"}
    assert needed <= set(inspect.signature(initialize_lora_eva_weights).parameters)
