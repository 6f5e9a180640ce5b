import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMaskedLM

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import ModelConfig
from peftsweep.errors import ModelError
from peftsweep.modalities.base import Skeleton
from peftsweep.modalities.loading import load_base
from peftsweep.modalities.skeleton import build_skeleton, depths_of, known_architecture, repeat_blocks

POCKET_LLAMA = ModelConfig("pocket-llama", "text", "embedded", dtype="float32")
POCKET_FLUX2 = ModelConfig("pocket-flux2", "image", "embedded", dtype="float32")
EMBEDDED = [POCKET_LLAMA, POCKET_FLUX2]
# From the models' cards and the headers of their weight files on the hub.
PUBLISHED = {
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "black-forest-labs/FLUX.2-klein-base-4B": 3_875_544_576,
}

# The same, of the checkpoints as they are, before a task gives them a head.
PUBLISHED_CHECKPOINTS = {
    "FacebookAI/roberta-base": (AutoModel, 124_645_632),
    "FacebookAI/roberta-large": (AutoModel, 355_359_744),
    "answerdotai/ModernBERT-base": (AutoModelForMaskedLM, 149_655_232),
    "HuggingFaceTB/SmolVLM-256M-Instruct": (AutoModelForImageTextToText, 256_484_928),
}


def spec_of_hub_model(model_id: str) -> ModelConfig:
    return ModelConfig("any", "image" if "FLUX" in model_id else "text", model_id)


def size_of(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def described(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
    return {name: (weight.shape, weight.dtype, weight.requires_grad) for name, weight in model.named_parameters()}


@pytest.mark.parametrize("model_id", PUBLISHED)
def test_a_known_architecture_has_the_published_number_of_parameters(model_id: str) -> None:
    skeleton = build_skeleton(spec_of_hub_model(model_id))
    assert size_of(skeleton.model) == PUBLISHED[model_id]
    assert skeleton.source == "the table of architectures"
    assert {weight.dtype for weight in skeleton.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("model_id", PUBLISHED_CHECKPOINTS)
def test_a_known_checkpoint_has_the_published_number_of_parameters(model_id: str) -> None:
    kind, published = PUBLISHED_CHECKPOINTS[model_id]
    known = known_architecture(ModelConfig("any", "encoder", model_id))
    assert known is not None
    with torch.device("meta"):
        assert size_of(kind.from_config(AutoConfig.for_model(**known))) == published


@pytest.mark.parametrize("name", ["roberta-base", "roberta-large", "modernbert-base", "esm2-150m", "smolvlm-256m"])
def test_models_with_a_yaml_are_planned_without_a_network(name: str) -> None:
    task = "vqa" if "vlm" in name else "classify"
    files = "task.train_files=train.jsonl"
    job = build_config(compose_config([f"task={task}", f"model={name}", files]))
    assert size_of(build_skeleton(job.model).model) > 100e6


@pytest.mark.parametrize("spec", EMBEDDED, ids=lambda spec: spec.name)
def test_parameters_are_those_of_the_loaded_model_without_their_values(spec: ModelConfig) -> None:
    skeleton = build_skeleton(spec)
    assert described(skeleton.model) == described(load_base(spec, torch.device("cpu")).model)
    assert all(tensor.is_meta for tensor in (*skeleton.model.parameters(), *skeleton.model.buffers()))


@pytest.mark.parametrize(("dtype", "computes_in"), [("float16", torch.float16), ("int4", torch.bfloat16)])
def test_weights_have_the_dtype_that_layers_compute_in(dtype: str, computes_in: torch.dtype) -> None:
    skeleton = build_skeleton(ModelConfig("pocket-llama", "text", "embedded", dtype=dtype))
    assert {weight.dtype for weight in skeleton.model.parameters()} == {computes_in}


def test_a_local_folder_needs_its_configuration_alone(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 100, **shape}))
    skeleton = build_skeleton(ModelConfig("mine", "text", str(tmp_path)))
    attention, mlp, norms = 4 * 32 * 32, 3 * 32 * 64, 2 * 32
    assert size_of(skeleton.model) == 2 * 100 * 32 + 2 * (attention + mlp + norms) + 32
    assert skeleton.source == str(tmp_path)


def test_one_skeleton_is_no_others() -> None:
    build_skeleton(POCKET_LLAMA).model.requires_grad_(True)
    assert not any(weight.requires_grad for weight in build_skeleton(POCKET_LLAMA).model.parameters())


def test_the_hub_is_asked_last_and_a_model_that_it_cannot_give_is_told() -> None:
    with pytest.raises(ModelError, match=r"Check model\.id|hf download"):
        build_skeleton(ModelConfig("any", "text", "nobody/no-such-model"))


def test_a_folder_without_a_configuration_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must hold a config\.json"):
        build_skeleton(ModelConfig("mine", "text", str(tmp_path)))


def repeated(spec: ModelConfig) -> tuple[Skeleton, Skeleton]:
    """(one block of each kind, repeated; the whole)."""
    whole, one = build_skeleton(spec), build_skeleton(spec, one_of_each=True)
    assert size_of(one.model) < size_of(whole.model)
    repeat_blocks(one.model, depths_of(whole.config))
    return one, whole


@pytest.mark.parametrize("spec", [*EMBEDDED, *map(spec_of_hub_model, PUBLISHED)], ids=lambda spec: spec.id + spec.name)
def test_one_block_of_each_kind_repeated_is_the_whole_model(spec: ModelConfig) -> None:
    one, whole = repeated(spec)
    assert described(one.model) == described(whole.model)


@pytest.mark.parametrize("model_id", [id for id in PUBLISHED if "FLUX" not in id])
def test_a_repeated_model_runs_all_its_blocks(model_id: str) -> None:
    one, whole = repeated(spec_of_hub_model(model_id))
    tokens = torch.zeros((1, 3), dtype=torch.int64, device="meta")
    calls: list[int] = []
    for layer in one.model.model.layers:
        layer.register_forward_hook(lambda block, *_: calls.append(block.self_attn.layer_idx))
    cache = one.model(tokens, use_cache=True).past_key_values
    assert calls == list(range(whole.config["num_hidden_layers"]))
    assert len(cache.layers) == len(calls)
