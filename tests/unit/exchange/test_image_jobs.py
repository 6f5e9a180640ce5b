"""Exports of a job on pictures: the adapter goes back on its transformer, merged or as LoRA, and draws what it drew."""

import json

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from peft import PeftConfig, PeftModel
from PIL import Image

from peftsweep.exchange.finished import load_base_of, open_job, put_adapter
from peftsweep.exchange.lora import export_lora
from peftsweep.exchange.result_writing import export_reference
from peftsweep.exchange.weights import export_adapter, export_merged

CPU = torch.device("cpu")


pytestmark = pytest.mark.slow  # whole jobs on pictures


@pytest.fixture
def job(finished_image_job):
    return lambda method: open_job(finished_image_job(method))


@torch.no_grad()
def velocity(model):
    draw = torch.Generator().manual_seed(0)
    config = model.config
    tokens = torch.zeros(4, 4)
    tokens[:, -1] = torch.arange(4)
    return model.eval()(
        hidden_states=torch.randn(1, 4, config.in_channels, generator=draw),
        encoder_hidden_states=torch.randn(1, 4, config.joint_attention_dim, generator=draw),
        timestep=torch.tensor([0.5]),
        img_ids=tokens,
        txt_ids=tokens,
        return_dict=False,
    )[0]


def velocities_of_job(job):
    base = load_base_of(job, CPU)
    before = velocity(base.model)
    return before, velocity(put_adapter(job, base, job.adapter))


def test_an_exported_adapter_goes_on_the_transformer(job, tmp_path):
    lora = job("lora")
    export_adapter(lora, tmp_path / "out")
    before, trained = velocities_of_job(lora)
    loaded = PeftModel.from_pretrained(load_base_of(lora, CPU).model, str(tmp_path / "out"))
    assert torch.equal(velocity(loaded), trained)
    assert not torch.allclose(before, trained, atol=1e-4)
    assert "| test/dino_similarity |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("method", ["lora", "oft"])
def test_a_merged_transformer_computes_as_base_and_adapter_did(job, tmp_path, method):
    trained_by = job(method)
    export_merged(trained_by, tmp_path / "out", CPU)
    before, trained = velocities_of_job(trained_by)
    merged = velocity(Flux2Transformer2DModel.from_pretrained(tmp_path / "out", torch_dtype=torch.float32))
    assert torch.allclose(merged, trained, atol=1e-4)
    assert not torch.allclose(merged, before, atol=1e-4)
    assert "library_name: diffusers" in (tmp_path / "out" / "README.md").read_text()


def test_a_fully_fine_tuned_transformer_is_merged_already(job, tmp_path):
    full = job("full")
    export_merged(full, tmp_path / "out", CPU)
    saved, exported = (Flux2Transformer2DModel.from_pretrained(folder) for folder in (full.adapter, tmp_path / "out"))
    assert torch.equal(velocity(saved), velocity(exported))


def test_a_converted_adapter_is_judged_by_new_pictures_of_the_same_prompts(job, tmp_path):
    lora = job("lora")
    conversion = export_lora(lora, tmp_path / "out", CPU, 32)
    assert PeftConfig.from_pretrained(str(tmp_path / "out")).peft_type == "LORA"
    assert conversion.after["test/dino_similarity"] == pytest.approx(
        conversion.before["test/dino_similarity"], abs=1e-3
    )
    assert conversion.test_items == lora.result.test_items
    items = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert items
    for item in items:
        assert Image.open(tmp_path / "out" / "images" / f"{item['image']}.png").size == (32, 32)


def test_a_job_on_pictures_becomes_files_of_the_benchmark(job, tmp_path):
    lora = job("lora")
    files, _ = export_reference(lora.folder, tmp_path)
    names = sorted(name.partition("/")[2] for name in files)
    assert [name.rpartition("/")[2] for name in names[:2]] == ["adapter_config.json", "training_params.json"]
    result = json.loads(next(tmp_path.glob("*/results/*.json")).read_text())
    assert result["run_info"]["peft_config"]["peft_type"] == "LORA"
    last = result["train_info"]["metrics"][-1]
    assert lora.result.metrics["test/dino_similarity"] in last.values()
