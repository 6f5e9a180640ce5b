import copy
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from peftsweep.config.schema import ModelConfig
from peftsweep.errors import ModelError
from peftsweep.modalities import loading as load
from peftsweep.modalities.loading import fingerprint_folder, load_base
from peftsweep.modalities.text.pocket import LLAMA_FOLDER

CPU = torch.device("cpu")
EMBEDDED = ModelConfig("pocket-llama", "text", "embedded", dtype="float32")
A_WEIGHT = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder of a few kilobytes, as `save_pretrained` writes it."""
    tokenizer = AutoTokenizer.from_pretrained(LLAMA_FOLDER)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def spec(model_id: object, **changes: Any) -> ModelConfig:
    return ModelConfig("hf", "text", str(model_id), **{"dtype": "float32"} | changes)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_loaded_model_is_frozen_and_in_eval_mode(folder: Path) -> None:
    base = load_base(spec(folder), CPU)
    assert not base.model.training
    assert not any(weight.requires_grad for weight in base.model.parameters())
    assert not base.is_embedded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_held_in_the_dtype_asked_for(folder: Path, dtype: str) -> None:
    weights = load_base(spec(folder, dtype=dtype), CPU).model.parameters()
    assert {weight.dtype for weight in weights} == {getattr(torch, dtype)}


def test_the_embedded_model_needs_no_folder_and_has_an_end_and_a_padding_token() -> None:
    base = load_base(EMBEDDED, CPU)
    assert base.is_embedded
    assert base.tokenizer.eos_token_id is not None
    assert base.tokenizer.pad_token_id is not None
    assert base.model.generation_config.eos_token_id == base.tokenizer.eos_token_id


def test_a_tokenizer_without_padding_pads_with_its_end_token(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    tokenizer = load_base(spec(folder), CPU).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None


def test_a_tokenizer_without_an_end_token_is_refused(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    settings = {key: value for key, value in json.loads(path.read_text()).items() if key != "eos_token"}
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="must have an end-of-sequence token"):
        load_base(spec(folder), CPU)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must be a hub id or an existing folder.*nowhere.*model\.id"):
        load_base(spec(tmp_path / "nowhere"), CPU)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must hold a config\.json"):
        load_base(spec(tmp_path), CPU)


def test_a_folder_below_home_can_be_named_with_a_tilde(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_base(spec("~/model"), CPU).revision == fingerprint_folder(folder)


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty"])
def test_broken_weights_are_refused(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes({"garbage": b"\xff" * 999, "cut": content[: len(content) // 2], "empty": b""}[damage])
    with pytest.raises(ModelError, match=r"weight files must be whole.*model\.id.*copy the model again"):
        load_base(spec(folder), CPU)


def test_a_missing_weight_is_refused_instead_of_made_up(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.pop(A_WEIGHT))
    with pytest.raises(ModelError, match=rf"must hold every weight; 1 are missing.*{A_WEIGHT}"):
        load_base(spec(folder), CPU)


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({A_WEIGHT: torch.zeros(5, 16)}))
    with pytest.raises(ModelError, match="weight files must be whole"):
        load_base(spec(folder), CPU)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no file named model\.safetensors.*copy the model again"):
        load_base(spec(folder), CPU)


def test_a_hub_id_without_network_is_told_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"or the hub reachable.*no-one/no-model.*hf download"):
        load_base(spec("no-one/no-model"), CPU)


# The hub's client has changed its HTTP library before; this is the one that the installed version uses.
HTTP = importlib.import_module(HTTPError.__module__.split(".")[0])


def refused(kind: type[Exception], message: str) -> Exception:
    return kind(message, response=SimpleNamespace(headers={}, request=None))  # type: ignore[call-arg]


REFUSALS: dict[str, tuple[Exception, str]] = {
    "gated": (
        refused(GatedRepoError, "403 Client Error. Access is restricted."),
        "gated.*hf auth login",
    ),
    "no such model": (refused(RepositoryNotFoundError, "404 Client Error."), "no such model"),
    "no such revision": (refused(RevisionNotFoundError, "404 Client Error."), "no such revision"),
    "no network": (HTTP.ConnectError("Name or service not known"), "hub reachable.*hf download"),
    "transformers, gated": (
        OSError("You are trying to access a gated repo.\nMake sure to have access to it"),
        "gated.*hf auth login",
    ),
    "transformers, no network": (
        OSError("We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them."),
        "hub reachable",
    ),
    "own code": (
        ValueError("The repository contains custom code. You can set `trust_remote_code=True`"),
        r"own Python code.*model\.trust_remote_code=true",
    ),
    "anything else": (ValueError("what is this?"), r"the model must load \(what is this\?\)"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_of_the_hub_says_what_to_do(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, rule = REFUSALS[case]

    def refuse(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelError, match=rule):
        load_base(spec("some/model"), CPU)


def test_a_folders_name_is_no_diagnosis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gated-offline-header"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(ModelError, match="the model must load"):
        load_base(spec(folder), CPU)


def test_an_error_of_ones_own_is_passed_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
    with pytest.raises(ZeroDivisionError):
        load_base(spec(folder), CPU)


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_quantised_weights_need_cuda(dtype: str) -> None:
    with pytest.raises(ModelError, match=r"int8 and int4 need a CUDA device, got 'cpu'.*Use bfloat16"):
        load_base(spec("embedded", dtype=dtype), CPU)


def test_quantised_weights_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs the package bitsandbytes.*peftsweep\[gpu\]"):
        load_base(spec("embedded", dtype="int4"), torch.device("cuda"))


def test_a_kept_model_is_the_same_bits_for_the_next_job_whatever_the_first_did(folder: Path) -> None:
    first = load_base(spec(folder), CPU, keep=True).model
    before = copy.deepcopy(first.state_dict())
    with torch.no_grad():
        for weight in first.parameters():
            weight.requires_grad_(True).zero_()
    del first.model.layers[0].mlp.up_proj
    second = load_base(spec(folder), CPU, keep=True).model
    after = second.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(weight.requires_grad for weight in second.parameters())


def test_a_kept_model_is_loaded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_base(spec(folder), CPU, keep=True)
    monkeypatch.setattr(load, "_load", lambda *arguments: pytest.fail("it was loaded again"))
    load_base(spec(folder), CPU, keep=True)


def test_a_copy_holds_each_weight_once_and_none_of_the_kept_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy on the host that is then moved would hold every weight three times."""
    load_base(EMBEDDED, CPU, keep=True)
    (kept,) = load._PRISTINE.values()
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", lambda *arguments: pytest.fail("a tensor was copied by deepcopy"))
    model = load_base(EMBEDDED, CPU, keep=True).model
    of_kept = {tensor.data_ptr() for tensor in (*kept.model.parameters(), *kept.model.buffers())}
    assert of_kept.isdisjoint(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))


def test_tied_weights_stay_tied_in_a_copy() -> None:
    model = load_base(EMBEDDED, CPU, keep=True).model
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_the_revision_is_the_same_wherever_the_folder_lies(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert load_base(spec(tmp_path / "elsewhere"), CPU).revision == load_base(spec(folder), CPU).revision


def test_the_revision_changes_with_a_weight(folder: Path) -> None:
    before = fingerprint_folder(folder)
    change_weights(folder, lambda weights: weights[A_WEIGHT].view(-1)[0].add_(1))
    assert fingerprint_folder(folder) != before


def test_the_revision_changes_with_the_tokenizer(folder: Path) -> None:
    before = fingerprint_folder(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["shells"])
    tokenizer.save_pretrained(folder)
    assert fingerprint_folder(folder) != before


def test_the_revision_changes_with_a_tensor_in_the_middle_of_a_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "WHOLE_FILE_BYTES", 2**20)
    content = bytearray(5 * 2**20)
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    before = fingerprint_folder(tmp_path)
    content[2 * 2**20 : 3 * 2**20] = b"x" * 2**20
    path.write_bytes(content)
    assert fingerprint_folder(tmp_path) != before


@pytest.mark.parametrize("asked", [None, "main", "0123456789" * 4])
def test_the_hubs_commit_is_the_revision(
    asked: str | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, kept = "0123456789" * 4, tmp_path / "models--somebody--tiny"
    shutil.copytree(folder, kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = load_base(ModelConfig("tiny", "text", "somebody/tiny", revision=asked, dtype="float32"), CPU)
    assert found.revision == commit
