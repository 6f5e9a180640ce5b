"""The plain adapter and the merged model: what is written does what the job's model did."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftsweep.errors import MethodError, OutputError
from peftsweep.exchange import weights
from peftsweep.exchange.finished import load_base_of, open_job, put_adapter
from peftsweep.exchange.weights import export_adapter, export_merged

CPU = torch.device("cpu")
IDS = torch.arange(2, 34).reshape(2, 16)


@torch.no_grad()
def logits_of(model):
    return model.eval()(input_ids=IDS).logits


def logits_of_job(job):
    base = load_base_of(job, CPU)
    before = logits_of(base.model)
    return before, logits_of(put_adapter(job, base, job.adapter))


def test_an_exported_adapter_loads_and_answers_as_the_job_s(finished, tmp_path):
    job = open_job(finished("lora"))
    export_adapter(job, tmp_path / "out")
    before, trained = logits_of_job(job)
    loaded = PeftModel.from_pretrained(load_base_of(job, CPU).model, str(tmp_path / "out"))
    assert torch.equal(logits_of(loaded), trained)
    assert not torch.allclose(before, trained, atol=1e-3)


def test_the_model_card_says_what_it_is_and_how_it_scored(finished, tmp_path):
    export_adapter(open_job(finished("lora")), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "| rank | 32 |" in card
    assert "| lr | 0.003 |" in card
    assert "| test/accuracy | 0.0% |" in card


@pytest.mark.parametrize("method", ["lora", "oft"])
def test_a_merged_model_answers_as_base_and_adapter_did(finished, tmp_path, method):
    job = open_job(finished(method))
    export_merged(job, tmp_path / "out", CPU)
    before, trained = logits_of_job(job)
    merged = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32))
    assert torch.allclose(merged, trained, atol=1e-4)
    assert not torch.allclose(merged, before, atol=1e-3)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token_id is not None
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_a_fully_fine_tuned_model_is_merged_already(finished, tmp_path):
    job = open_job(finished("full"))
    export_merged(job, tmp_path / "out", CPU)
    saved = AutoModelForCausalLM.from_pretrained(job.adapter, dtype=torch.float32)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(logits_of(exported), logits_of(saved))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token_id is not None


def test_full_fine_tuning_has_no_adapter_to_export(finished, tmp_path):
    with pytest.raises(MethodError, match="export merged"):
        export_adapter(open_job(finished("full")), tmp_path / "out")


def test_a_method_that_can_not_be_merged_is_refused_before_anything_is_loaded(finished, tmp_path, monkeypatch):
    job = open_job(finished("prompt-tuning"))
    monkeypatch.setattr(weights, "load_base_of", lambda *_, **__: pytest.fail("the base model was loaded"))
    with pytest.raises(MethodError, match="can't merge prompt-tuning"):
        export_merged(job, tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_an_export_never_writes_over_what_is_there(finished, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(OutputError, match="must be empty"):
        export_adapter(open_job(finished("lora")), tmp_path)
