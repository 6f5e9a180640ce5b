import json

import pytest
import yaml

from peftsweep.records.redact import REDACTED, is_secret_key, redact, redact_forms, redact_params

HUB_TOKEN = "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dF3h"


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "tracking.password",
        "HF_TOKEN",
        "token",
        "apiKey",
        "api_key",
        "AWS_SECRET_ACCESS_KEY",
        "Authorization",
    ],
)
def test_secret_keys_are_known(key: str) -> None:
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key",
    [
        "pad_token",
        "eos_token",
        "max_new_tokens",
        "tokenizer",
        "num_virtual_tokens",
        "train/tokens_per_second",
        "key",
        "secretary",
    ],
)
def test_words_of_the_field_are_not_secret_keys(key: str) -> None:
    assert not is_secret_key(key)


@pytest.mark.parametrize(
    "line",
    [
        "password: planted",
        "  password:  planted words, and a comma",
        "password: 'planted'",
        '{"password": "planted", "lr": 1}',
        '{"password": "a\\"planted"}',
        "- tracking.password=planted",
        "- 'model.token=planted'",
        "python -m peftsweep +task.api_key=planted task=metamath",
        "postgresql://user:planted@host/db",
        "http://user:pl@planted@host:5000",
        "https://planted@host/path",
        "Authorization: Bearer plantedplanted",
        '"cause": "token=planted"',
        "cause: password: planted",
        '{"body": "{\\"password\\": \\"planted\\"}"}',
        "sent header Bearer plantedplanted",
        f"planted_not_by_key {HUB_TOKEN}",
    ],
)
def test_planted_secret_is_gone_from_text(line: str) -> None:
    line = line.replace("planted_not_by_key", "")
    assert "planted" not in redact(line)
    assert HUB_TOKEN not in redact(line)
    assert REDACTED in redact(line)


@pytest.mark.parametrize(
    "line",
    [
        "loss per target token: 1.25",
        "pad_token: <|end|>",
        "token: null",
        "use_token: true",
        "see hf_hub_download and hf_benchmark",
        "https://huggingface.co/org/model@main",
        "time 12:30:01 lr=0.1",
        "hparams:\n  lr: 0.001\n  max_steps: 20\n",
    ],
)
def test_harmless_text_stays(line: str) -> None:
    assert redact(line) == line


def test_redacted_yaml_and_json_still_parse() -> None:
    content = {"tracking": {"password": "a: 'b' \"c\"", "api_key": 123456}, "hparams": {"lr": 0.1, "token": None}}
    expected = {"tracking": {"password": REDACTED, "api_key": REDACTED}, "hparams": {"lr": 0.1, "token": None}}
    assert yaml.safe_load(redact(yaml.safe_dump(content))) == expected
    assert json.loads(redact(json.dumps(content))) == expected
    assert json.loads(redact(json.dumps(content, indent=2))) == expected


def test_value_of_a_secret_environment_variable_is_blanked_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    assert redact_forms("it was correct horse all along") == f"it was {REDACTED} all along"


def test_short_switches_in_the_environment_blank_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert redact_forms("lr 0.1") == "lr 0.1"


def test_params_are_blanked_at_any_depth() -> None:
    params = {
        "tracking": {"password": 12345, "uri": "http://u:planted@h"},
        "overrides": ["model.token=planted", "lr=1"],
        "credentials": {"user": "planted"},
        "task": {"template": "token: stays", "pad_token": "stays"},
    }
    assert redact_params(params) == {
        "tracking": {"password": REDACTED, "uri": f"http://u:{REDACTED}@h"},
        "overrides": [f"model.token={REDACTED}", "lr=1"],
        "credentials": REDACTED,
        "task": {"template": "token: stays", "pad_token": "stays"},
    }
