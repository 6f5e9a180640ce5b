"""What is said to a first guess: the line to type."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from omegaconf import DictConfig

from peftsweep.__main__ import main
from peftsweep.commands import COMMANDS
from peftsweep.config.compose import compose_config, group_choices, group_names, parse_command_line
from peftsweep.config.hints import (
    COMMAND_WORDS,
    EPOCHS,
    FAIR,
    LINE_OF,
    MEANINGS,
    OF_SWEEPS,
    OWN_ROWS,
    choice_hint,
    command_hint,
    setting_hint,
)
from peftsweep.config.registry import schema_of, settings_of

SETTINGS = {
    "hparams.learning_rate=1e-3": "Type hparams.lr=1e-3.",
    "lr=1e-3": "Type hparams.lr=1e-3.",
    "trainer.learning_rate=1e-3": "Type hparams.lr=1e-3.",
    "lr=interval(1e-4,1e-2)": "Type hparams.lr=interval(1e-4,1e-2).",
    "rank=8": "Type method.capacity=8.",
    "r=8": "Type method.capacity=8.",
    "batch_size=8": "Type hparams.batch_size=8.",
    "Per_Device_Train_Batch_Size=8": "Type hparams.batch_size=8.",
    "eval_steps=50": "Type hparams.eval_every=50.",
    "adam_beta2=0.95": "Type ++hparams.optimizer_kwargs.betas=[0.9,0.999].",
    "lora_alpha=16": "Type ++method.peft.lora_alpha=16.",
    "load_in_4bit=true": "Type model.dtype=int4.",
    "torch_dtype=bf16": "Type model.dtype=bfloat16.",
    "epochs=3": "Training is counted in steps of 4 rows: hparams.max_steps=<epochs x rows / 4>.",
    "epochs=many": "Training is counted in steps of 4 rows: hparams.max_steps=<epochs x rows / 4>.",
    "n_trials=5": f"It is a setting of a fair sweep: add {FAIR}.",
    "budget.tokens=5": f"It is a setting of a fair sweep: add {FAIR}.",
    "ntrials=5": f"It is a setting of a fair sweep: type {FAIR} n_trials=5.",
    "ntrials=5 hydra/sweeper=fair": "Type n_trials=5.",
    "model_name_or_path=Qwen/Qwen2.5-7B": "Type model=hf model.id=Qwen/Qwen2.5-7B.",
    "model_name_or_path=meta-llama/Llama-3.2-3B": "Type model=llama-3.2-3b.",
    "adapter=qlora": "Type method=lora model.dtype=int4.",
    "adapter=oft": "Type method=oft.",
    "dataset=openai/gsm8k": "Type task=metamath.",
    "dataset=tatsu-lab/alpaca-cleaned": f"Type {OWN_ROWS}: rows of the hub are saved to files first.",
    "sede=1": "Did you mean seed?",
}
CHOICES = {
    "hydra/sweeper=optuna": "Type hydra/sweeper=fair, which asks Optuna; basic is a plain grid.",
    "hydra/launcher=joblb": "Did you mean joblib?",
    "model=Qwen/Qwen2.5-7B": "Type model=hf model.id=Qwen/Qwen2.5-7B.",
    "model=llama": "Did you mean llama-3.1-70b, llama-3.1-8b, llama-3.2-1b, llama-3.2-3b or pocket-llama?",
    "method=qlora": "Type method=lora model.dtype=int4.",
    "method=dorra": "Did you mean dora or delora?",
    "task=gsm8k": "Type task=metamath.",
    "task=openai/gsm8k": "Type task=metamath.",
}
COMMAND_LINES = {
    "sweep method=lora": f"Type python -m peftsweep {FAIR} method=lora",
    "sweep -m method=lora": f"Type python -m peftsweep {FAIR} method=lora",
    "sweep": f"Type python -m peftsweep {FAIR} method=lora,oft task=metamath",
    "train": "Type python -m peftsweep method=lora task=metamath",
    "lora": "Type python -m peftsweep method=lora",
    "llama-3.2-3b method=oft": "Type python -m peftsweep model=llama-3.2-3b method=oft",
    "best 'memory<=1GB'": "Type python -m peftsweep recommend 'memory<=1GB'",
    "repot": "Did you mean report or export? A setting of a job is written key=value.",
}
LINES = {
    "hparams.learning_rate=1e-3": "Type hparams.lr=1e-3.",
    "-m hydra/sweeper=fair rank=8,16": "Type method.capacity=8,16.",
    "-m hydra/sweeper=optuna": "Type hydra/sweeper=fair",
    "model.dtype=nf4": "Type model.dtype=int4.",
    "lora": "Type python -m peftsweep method=lora",
    "method=lora report": "A command is the first word",
    "-m method.lr=1e-3,1e-4": "Type hparams.lr=1e-3,1e-4.",
    "-m hydra/sweeper=fair method.search_space.lr=[1e-4,1e-2]": "Type hparams.lr=interval(1e-4,1e-2).",
}


@pytest.fixture(scope="module")
def config() -> DictConfig:
    return compose_config([])


@pytest.mark.parametrize("typed", SETTINGS)
def test_a_setting_of_another_tool_is_answered_with_the_line_to_type(typed: str, config: DictConfig) -> None:
    line, key = parse_command_line(typed.split()), typed.partition("=")[0]
    known = [f"hparams.{name}" for name in config.hparams] if key.startswith("hparams.") else list(config)
    key = key if key.startswith("hparams.") else key.partition(".")[0]  # as the check meets it
    told = setting_hint(key, known, line=line, config=config, schema=schema_of(config))
    assert told.startswith(SETTINGS[typed])


@pytest.mark.parametrize("typed", CHOICES)
def test_a_name_that_a_group_lacks_is_answered_with_the_line_to_type(typed: str) -> None:
    group, _, value = typed.partition("=")
    assert choice_hint(group, value, group_choices(group)) == CHOICES[typed]


@pytest.mark.parametrize("typed", COMMAND_LINES)
def test_a_command_that_there_is_not_is_answered_with_the_line_to_type(typed: str) -> None:
    word, *rest = shlex.split(typed)
    assert command_hint(word, rest, COMMANDS) == COMMAND_LINES[typed]


@pytest.mark.parametrize("typed", LINES)
def test_the_command_line_gives_these_answers(
    typed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(typed)) == 2
    assert LINES[typed] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["task.train_rows=1001"], "3 epochs of 1,001 are hparams.max_steps=751."),
        (["task.train_rows=100", "hparams.gradient_accumulation=2"], "3 epochs of 100 are hparams.max_steps=38."),
        (["task=sft", "task.train_files=train.jsonl"], "3 epochs of 10 are hparams.max_steps=8."),
    ],
)
def test_epochs_are_told_in_steps_where_the_rows_are_known(
    settings: list[str], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("{}\n" * 10)
    config = compose_config(settings)
    line = parse_command_line(["epochs=3"])
    assert told in setting_hint("epochs", [], line=line, config=config, schema=schema_of(config))


def test_a_file_of_ones_own_is_a_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("{}\n")
    line = "task=sft task.train_files=train.jsonl"
    assert choice_hint("task", "train.jsonl", ["sft"]) == f"Type {line}."


def keys_that_can_be_typed() -> set[str]:
    tasks = ("metamath", "sft", "image-gen")
    found = {key for task in tasks for key, _ in settings_of(schema_of(compose_config([f"task={task}"])))}
    return found | set(group_names()) | set(OF_SWEEPS) | {"hydra/sweeper", "hydra.run.dir", "budget.gpu_seconds"}


def test_every_setting_that_is_offered_exists() -> None:
    keys = {word.partition("=")[0] for line in MEANINGS for word in line.split() if "=" in word}
    free = ("++method.peft.", "++hparams.optimizer_kwargs.")
    assert {key for key in keys if not key.startswith(free)} <= keys_that_can_be_typed()


def test_a_word_means_one_thing() -> None:
    for rows in (MEANINGS, COMMAND_WORDS):
        words = [word for words in rows.values() for word in words.split()]
        assert len(words) == len(set(words))
    assert LINE_OF.keys().isdisjoint(EPOCHS)


def test_every_command_that_is_offered_exists() -> None:
    assert {line for line in COMMAND_WORDS if line and line[0] != "-"} <= COMMANDS.keys()
