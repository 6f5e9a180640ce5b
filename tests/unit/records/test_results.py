"""result.json: whole or absent, valid JSON, read back as it was written."""

import json
import math
import os

import pytest

from peftsweep.errors import DataError
from peftsweep.records.results import RESULT_FILE, SCHEMA_VERSION, JobResult, Status, load_result, save_result


def make_result(**changes):
    known = {"status": Status.OK, "method": "lora", "model": "pocket-llama", "task": "metamath", "seed": 3}
    return JobResult(**(known | changes))


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    result = make_result(
        metrics={"test/accuracy": 0.5}, intervals={"test/accuracy": (0.4, 0.6)}, config={"seed": 3}, steps=7
    )
    save_result(result, tmp_path)
    assert load_result(tmp_path) == result
    assert load_result(tmp_path / RESULT_FILE) == result


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_absent(tmp_path, value):
    save_result(make_result(metrics={"valid/loss": value, "test/loss": 1.0}), tmp_path)
    assert load_result(tmp_path).metrics == {"test/loss": 1.0}


def test_a_setting_may_be_infinite(tmp_path):
    save_result(make_result(config={"hparams": {"max_grad_norm": math.inf, "betas": [0.9, math.inf]}}), tmp_path)
    config = load_result(tmp_path).config["hparams"]
    assert (float(config["max_grad_norm"]), config["betas"]) == (math.inf, [0.9, "inf"])


def test_the_file_is_json_that_other_languages_read(tmp_path):
    save_result(make_result(metrics={"valid/loss": math.nan}, config={"lr": math.inf}), tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / RESULT_FILE).read_text(), parse_constant=refuse)


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save_result(make_result(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_result_before(tmp_path, monkeypatch):
    save_result(make_result(seed=1), tmp_path)
    with pytest.raises(TypeError):
        save_result(make_result(metrics={"test/loss": "high"}), tmp_path)
    assert load_result(tmp_path).seed == 1
    assert [path.name for path in tmp_path.iterdir()] == [RESULT_FILE]


def test_an_unfinished_job_is_told_from_a_broken_result(tmp_path):
    with pytest.raises(DataError, match="unfinished"):
        load_result(tmp_path)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{half", "valid JSON"),
        ("[]", "schema_version"),
        ('{"schema_version": 1}', "must describe a job"),
        (f'{{"schema_version": {SCHEMA_VERSION + 1}}}', "Upgrade peftsweep"),
    ],
)
def test_a_file_that_is_no_result_is_told(tmp_path, text, rule):
    (tmp_path / RESULT_FILE).write_text(text)
    with pytest.raises(DataError, match=rule):
        load_result(tmp_path)


def test_an_unknown_status_is_told(tmp_path):
    save_result(make_result(), tmp_path)
    path = tmp_path / RESULT_FILE
    path.write_text(path.read_text().replace('"ok"', '"fine"'))
    with pytest.raises(DataError, match="fine"):
        load_result(tmp_path)


def test_fields_of_a_later_minor_version_are_ignored(tmp_path):
    save_result(make_result(), tmp_path)
    path = tmp_path / RESULT_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "blue"}))
    assert load_result(tmp_path) == make_result()
