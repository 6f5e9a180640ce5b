"""What modalities use of torch, transformers and diffusers that these do not promise to keep, each by its name.

Where one fails after an upgrade, look at the module that the message names before anything else.
"""

import inspect
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

from peftsweep.modalities.text.decoding import _PreallocatedLayer

TINY = LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
)


def test_a_compiled_module_keeps_what_it_compiles() -> None:
    module = nn.Linear(1, 1)
    kept = getattr(torch.compile(module), "_orig_mod", None)
    assert kept is module, "modalities/wrapped.py: torch.compile's `_orig_mod` has moved"


def test_a_models_loss_is_set_by_its_property_and_unset_by_its_attribute() -> None:
    model: Any = LlamaForCausalLM(TINY)
    model.loss_function = len
    assert vars(model).get("_loss_function") is len, "modalities/text/loss.py: transformers' `_loss_function` has moved"


def test_a_cache_holds_keys_and_values_layer_by_layer() -> None:
    with torch.no_grad():
        cache: Any = LlamaForCausalLM(TINY)(input_ids=torch.ones(2, 3).long(), use_cache=True).past_key_values
    where = "modalities/text/decoding.py: transformers' "
    assert isinstance(cache, DynamicCache), where + "cache of a model is no `DynamicCache`"
    assert [type(layer) for layer in cache.layers] == [DynamicLayer], where + "`DynamicCache.layers` has changed"
    [layer] = cache.layers
    assert layer.keys.shape == layer.values.shape == (2, 1, 3, 8), where + "`DynamicLayer.keys` has another shape"
    kept = inspect.signature(_PreallocatedLayer.update).parameters
    asked = list(inspect.signature(DynamicLayer.update).parameters)[:3]
    assert asked == list(kept)[:3], where + "`DynamicLayer.update` takes other arguments"
    cache.reorder_cache(torch.tensor([1]))
    assert len(cache.layers[0].keys) == 1, where + "`DynamicCache.reorder_cache` no longer selects rows"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_pack_latents", ["latents"]),
        ("_prepare_text_ids", ["x"]),
        ("_prepare_latent_ids", ["latents"]),
        ("_encode_vae_image", ["image", "generator"]),
    ],
)
def test_the_pipeline_has_what_training_asks_of_it(name: str, parameters: list[str]) -> None:
    found = getattr(Flux2KleinPipeline, name, None)
    assert found is not None, f"modalities/image/pipeline.py: diffusers' `Flux2KleinPipeline.{name}` has moved"
    taken = [each for each in inspect.signature(found).parameters if each != "self"]
    assert taken[: len(parameters)] == parameters, f"modalities/image/pipeline.py: `{name}` takes {taken}"


def test_latents_are_packed_and_numbered_row_by_row() -> None:
    """As training and drawing must agree on: token i of a picture is at row i // width, column i % width."""
    latents = torch.arange(6.0).view(1, 1, 2, 3)
    pipeline: Any = Flux2KleinPipeline
    assert pipeline._pack_latents(latents).flatten().tolist() == list(range(6))
    assert pipeline._prepare_latent_ids(latents)[0, :, 1:3].tolist() == [
        [row, col] for row in (0, 1) for col in (0, 1, 2)
    ]
