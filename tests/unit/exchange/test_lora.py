"""Another method's adapter as LoRA: faithful where the rank suffices, refused where peft can't, judged on the same
items."""

import dataclasses
import json

import pytest
import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from peftsweep.errors import DataError, MethodError
from peftsweep.exchange import lora
from peftsweep.exchange.finished import load_base_of, open_job, put_adapter
from peftsweep.exchange.lora import export_lora
from peftsweep.methods.capabilities import lost_at_full_rank
from peftsweep.methods.catalog import method_files, read_method_file
from peftsweep.records.results import Stage

CPU = torch.device("cpu")
IDS = torch.arange(2, 34).reshape(2, 16)


def with_method(job, name):
    return dataclasses.replace(
        job, config=dataclasses.replace(job.config, method=read_method_file(method_files()[name]))
    )


@torch.no_grad()
def logits_with(job, adapter):
    return put_adapter(job, load_base_of(job, CPU), adapter)(input_ids=IDS).logits


def test_a_converted_adapter_answers_as_the_original_where_the_rank_suffices(finished, tmp_path):
    job = open_job(finished("miss"))
    conversion = export_lora(job, tmp_path / "out", CPU, 64)
    assert PeftConfig.from_pretrained(str(tmp_path / "out")).peft_type == "LORA"
    assert torch.allclose(logits_with(job, tmp_path / "out"), logits_with(job, job.adapter), atol=1e-4)
    assert conversion.after["test/loss"] == pytest.approx(conversion.before["test/loss"], abs=1e-5)


def test_a_low_rank_loses_something_and_the_score_is_of_the_converted_adapter(finished, tmp_path):
    job = open_job(finished("lora"))
    conversion = export_lora(job, tmp_path / "out", CPU, 1)
    assert conversion.ranks == (1, 1)
    assert conversion.after["test/loss"] != pytest.approx(conversion.before["test/loss"], abs=1e-6)
    assert conversion.after["adapter/file_bytes"] < conversion.before["adapter/file_bytes"]


def test_a_share_gives_each_layer_the_rank_that_it_needs(finished, tmp_path):
    conversion = export_lora(open_job(finished("lora")), tmp_path / "out", CPU, 0.9)
    low, high = conversion.ranks
    assert 1 <= low <= high < 32


def test_the_export_keeps_the_comparison_and_every_answer(finished, tmp_path):
    job = open_job(finished("lora"))
    conversion = export_lora(job, tmp_path / "out", CPU, 4)
    written = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert written["before"]["test/loss"] == job.result.metrics["test/loss"]
    assert written["after"] == conversion.after
    assert written["test_items"] == job.result.test_items
    answers = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    asked = (job.folder / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in answers] == [json.loads(line)["prompt"] for line in asked]
    assert "rank 4" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("oft", "can't convert oft"),
        ("ia3", "can't convert ia3"),
        ("dora", "can't convert dora"),
        ("prompt-tuning", "prompt-tuning"),
        ("full", "no adapter"),
    ],
)
def test_what_peft_can_not_convert_is_refused_before_anything_is_loaded(
    finished, tmp_path, monkeypatch, method, reason
):
    job = with_method(open_job(finished("lora")), method)  # nothing of the job but its settings is read
    monkeypatch.setattr(lora, "load_base_of", lambda *_: pytest.fail("the base model was loaded"))
    with pytest.raises(MethodError, match=reason):
        export_lora(job, tmp_path / "out", CPU, 8)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("method", "reason"), [("dora", "drops a part"), ("bdlora", "shapes")])
def test_a_conversion_that_would_be_wrong_at_any_rank_is_refused(finished, tmp_path, monkeypatch, method, reason):
    monkeypatch.setattr(lora, "_require_convertible", lambda method: None)  # a single layer told it before
    with pytest.raises(MethodError, match=reason):
        export_lora(open_job(finished(method)), tmp_path / "out", CPU, 64)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("method", ["vera", "loha"])
def test_a_layer_loses_nothing_at_full_rank_where_the_conversion_is_right(finished, method):
    job = open_job(finished(method))
    model = put_adapter(job, load_base_of(job, CPU), job.adapter)
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    assert lost_at_full_rank(layers[0]) < 1e-4


def test_a_rank_above_the_layers_is_refused_with_peft_s_reason(finished, tmp_path):
    with pytest.raises(MethodError, match="larger than the weight shape"):
        export_lora(open_job(finished("lora")), tmp_path / "out", CPU, 4096)


def test_a_trial_of_tuning_is_not_judged_by_test_data(finished, tmp_path):
    job = open_job(finished("lora", "stage=tune"))
    assert job.result.stage is Stage.TUNE
    with pytest.raises(DataError, match="tuning"):
        export_lora(job, tmp_path / "out", CPU, 8)


def test_other_test_items_than_the_job_s_are_refused(finished, tmp_path):
    job = open_job(finished("lora"))
    task = dataclasses.replace(job.config.task, test_rows=3)
    other = dataclasses.replace(job, config=dataclasses.replace(job.config, task=task))
    with pytest.raises(DataError, match="test items"):
        export_lora(other, tmp_path / "out", CPU, 8)
