import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from peftsweep.__main__ import main
from peftsweep.commands import plan_memory as command
from peftsweep.errors import ConfigError, MethodError, ModelError
from peftsweep.job.plan import planner

QUICK = ("task.train_rows=20", "task.valid_rows=5", "task.test_rows=5")
Plan = Callable[..., Any]


@pytest.fixture
def plan_json(capsys: pytest.CaptureFixture[str]) -> Plan:
    """Called with arguments: the plans, and the exit code."""

    def run(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
        assert command.run([*arguments, *QUICK, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


def test_the_table_tells_what_is_needed_and_what_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert command.run([*QUICK, "method=lora"]) == 0
    printed = capsys.readouterr().out
    for word in ("method", "rows", "peak GiB", "range", "weights", "allocator", "115k", "8 GB", "longest training row"):
        assert word in printed


def test_json_has_all_sizes_in_bytes(plan_json: Plan) -> None:
    [plan] = plan_json("method=lora")
    assert (plan["method"], plan["model"], plan["batch_size"]) == ("lora", "pocket-llama", 4)
    assert plan["trainable_params"] == 114_688
    assert plan["low_bytes"] < plan["train_peak_bytes"] == sum(plan["parts"].values()) < plan["high_bytes"]
    assert plan["fits_gb"]["8"] is True
    assert plan["gpus"] == []


def test_a_card_adds_the_largest_batch_and_ways_out(plan_json: Plan) -> None:
    needed = plan_json("method=lora", "hparams.batch_size=4")[0]["high_bytes"]
    rows = plan_json("-m", "method=lora", "hparams.batch_size=4,64", f"gpu={needed}B,1TB")
    assert [[card["bytes"] for card in row["gpus"]] for row in rows] == [[needed, 10**12]] * 2
    assert [[card["fits"] for card in row["gpus"]] for row in rows] == [[True, True], [False, True]]
    four, five = (row["gpus"][0] for row in rows)
    assert four["largest_batch"] == five["largest_batch"] >= 4
    assert four["remedies"] == []
    assert "hparams.max_tokens_per_pass=104" in [way["change"] for way in five["remedies"]]


def test_combinations_come_with_the_last_setting_changing_fastest(plan_json: Plan) -> None:
    plans = plan_json("-m", "method=beft,ia3", "hparams.batch_size=1,2")
    assert [(plan["method"], plan["batch_size"]) for plan in plans] == [
        ("beft", 1),
        ("beft", 2),
        ("ia3", 1),
        ("ia3", 2),
    ]


def test_batches_of_one_method_share_a_planner(plan_json: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(planner.Planner):
        def __init__(self, *arguments: Any) -> None:
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(planner, "Planner", Counted)
    plan_json("-m", "hparams.batch_size=1,2,4", "method=beft,ia3")
    assert len(made) == 2


def test_a_method_without_a_plan_is_told_beside_the_others(plan_json: Plan) -> None:
    lora, frod = plan_json("-m", "method=lora,frod", code=1)
    assert "train_peak_bytes" in lora
    assert "hparams.max_steps=5" in frod["error"]


def test_a_model_without_a_configuration_is_told_beside_the_others(plan_json: Plan) -> None:
    known, unknown = plan_json("-m", "model=hf", "model.id=HuggingFaceTB/SmolLM2-135M,nobody/none", code=1)
    assert known["total_params"] > 134_515_008
    assert "model.id" in unknown["error"]


def test_the_only_job_without_a_plan_is_an_error() -> None:
    with pytest.raises(MethodError, match="frod"):
        command.run(["method=frod"])
    with pytest.raises(ModelError, match="nobody/none"):
        command.run(["model=hf", "model.id=nobody/none"])


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["method=lora,oft"], "several values of a setting need -m"),
        (["method=lorra"], "there is no method of this name"),
        (["hparams.batch_size=0"], "must be at least 1"),
        (["gpu=0"], "memory must be a number above 0 and a unit"),
        (["gpu=abc"], "memory must be a number above 0 and a unit"),
        (["method=lora", "hparams.bacth_size=4"], "there is no such setting"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told(arguments: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        command.run(arguments)


def test_plan_is_a_word_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--help"]) == 0
    assert "Predict the peak memory" in capsys.readouterr().out


def test_help_and_mistakes_do_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom peftsweep.__main__ import main\n"
        "codes = main(['plan', '--help']), main(['plan', 'method=lorra'])\n"
        "print(codes[0], codes[1] != 0, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 True False"
