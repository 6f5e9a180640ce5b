"""Every file under conf/, found recursively: it composes, it is checked, and its first line is a command that works."""

import shlex
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from peftsweep.config.check import build_config, check_and_build, check_command_line, check_job
from peftsweep.config.compose import compose_config, config_folder, parse_command_line
from peftsweep.methods.catalog import method_files, read_method_file

CONF = config_folder()
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
OPTIONS = [path for path in FILES if len(path.parts) > 1]
NAMED = ("model", "task", "method", "tracking")  # groups whose choice is a word in result.json and in MLflow


@pytest.fixture(autouse=True)
def user_files(tmp_path, monkeypatch):
    """The files that examples name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"prompt": "1 + 1", "response": "2"}\n')


@cache
def methods():
    return {name: read_method_file(path) for name, path in method_files().items()}


def option_of(path: Path) -> str:
    return path.with_suffix("").as_posix()


def override_for(path: Path) -> str:
    group, _, name = option_of(path).rpartition("/")
    return f"{group}={name}"


def command_in(path: Path) -> list[str]:
    """The arguments of the command line in a file's opening comment, up to its end or the words that explain it."""
    opening = [line for line in (CONF / path).read_text().splitlines()[:3] if line.startswith("#")]
    line = next(line for line in opening if "python -m peftsweep" in line)
    command = line.partition("python -m peftsweep")[2].split("`")[0]
    words = shlex.split(command)
    is_argument = [word.startswith("-") or "=" in word for word in words] + [False]
    return [word.rstrip(":.,") for word in words[: is_argument.index(False)]]


def test_files_are_found():
    assert {"model", "task", "method", "hparams", "tracking", "experiment", "hydra"} <= {p.parts[0] for p in OPTIONS}
    assert len(methods()) > 45  # at least as many as the installed peft has types


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] != "method"], ids=option_of)
def test_it_opens_with_a_command_that_works(path):
    arguments = command_in(path)
    if len(path.parts) > 1:
        assert override_for(path) in arguments
    check_command_line(parse_command_line(arguments))


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "method"], ids=option_of)
def test_a_methods_command_is_one_job_that_works(path):
    """One job, one composition: what a sweep's command line needs beyond it, other files' commands have."""
    arguments = command_in(path)
    assert override_for(path) in arguments
    assert [str(problem) for problem in check_job(arguments, parse_command_line(arguments))[0]] == []


def test_its_name_is_the_file_name():
    """So that the word on the command line, in result.json and in MLflow is one; a model whose id is typed has that."""
    loaded = {path: OmegaConf.load(CONF / path) for path in OPTIONS if path.parts[0] in NAMED}
    names = {path: file.name for path, file in loaded.items() if not OmegaConf.is_missing(file, "id")}
    assert len(names) > len(methods())
    assert {option_of(path): name for path, name in names.items() if name != path.stem} == {}
    assert sorted(map(option_of, loaded.keys() - names.keys())) == [
        "model/encoder",
        "model/flux2",
        "model/hf",
        "model/vlm",
    ]


@pytest.mark.parametrize(("typed", "name"), [("Qwen/Qwen3-0.6B", "Qwen3-0.6B"), ("some/folder/", "folder")])
def test_a_model_whose_id_is_typed_is_called_by_the_last_part_of_it(typed, name):
    assert build_config(compose_config(["model=hf", f"model.id={typed}"])).model.name == name


def test_a_methods_search_space_holds_its_default_rate():
    def is_held(method):
        low, high = method.search_space.lr
        return 0 < low <= method.lr <= high

    assert [name for name, method in methods().items() if not is_held(method)] == []


def test_a_method_has_a_capacity_its_knob_and_sizes_to_search_or_none_of_them():
    def is_whole(method):
        capacity, sizes = method.capacity, method.search_space.capacity
        return (not method.capacity_knob and sizes is None) if capacity is None else capacity in (sizes or [])

    assert [name for name, method in methods().items() if not is_whole(method)] == []
    nameless = {name for name, method in methods().items() if method.capacity is not None and not method.capacity_knob}
    assert nameless == set()


def test_a_method_links_its_paper():
    assert [name for name, method in methods().items() if not method.paper.startswith("https://")] == []


def hparams_of(*overrides: str):
    return build_config(compose_config(overrides)).hparams


def test_the_reference_model_alone_selects_the_reference_benchmarks_settings():
    """Values: method_comparison/MetaMathQA of the PEFT library, default_training_params.json."""
    hparams = hparams_of("model=llama-3.2-3b")
    assert (hparams.max_steps, hparams.batch_size, hparams.lr) == (5000, 4, 1e-4)
    assert (hparams.scheduler, hparams.max_seq_length, hparams.optimizer) == ("cosine", 768, "AdamW")
    assert (hparams.weight_decay, hparams.max_grad_norm) == (0.1, 1.0)


def test_the_embedded_model_alone_selects_small_settings():
    hparams = hparams_of("model=pocket-llama")
    assert hparams.max_steps <= 500
    assert hparams.max_seq_length <= 256


def test_the_default_is_the_embedded_model():
    assert compose_config([]) == compose_config(["model=pocket-llama", "task=metamath", "method=lora"])


def test_an_experiment_brings_its_models_settings():
    assert hparams_of("experiment=metamath-llama-3.2-3b") == hparams_of("model=llama-3.2-3b")


@pytest.mark.parametrize("order", [1, -1])
def test_the_command_line_wins_over_the_models_choice(order):
    typed = ["model=llama-3.2-3b", "hparams.max_steps=7", "hparams.lr=0.5"][::order]
    hparams = hparams_of(*typed)
    assert (hparams.max_steps, hparams.lr, hparams.batch_size) == (7, 0.5, 4)


def test_a_named_group_of_settings_wins_over_the_models_choice():
    assert hparams_of("model=llama-3.2-3b", "hparams=metamath-pocket").max_steps == hparams_of().max_steps


def test_the_learning_rate_follows_the_method():
    reference = "hparams=metamath-reference"
    assert hparams_of(reference, "method=lora").lr != hparams_of(reference, "method=full").lr


def test_capacity_reaches_the_peft_config():
    method = build_config(compose_config(["method=lora", "method.capacity=5"])).method
    assert (method.peft["r"], method.peft["lora_alpha"]) == (5, 10)


def test_a_search_space_that_is_upside_down_is_told():
    problems = check_and_build(compose_config(["method.search_space.lr=[1e-2,1e-5]"]))[0]
    assert ["search_space.lr" in str(problem) for problem in problems] == [True]


def test_capacities_that_fall_or_repeat_are_told():
    problems = check_and_build(compose_config(["method.search_space.capacity=[8,4,4]"]))[0]
    assert ["search_space.capacity" in str(problem) for problem in problems] == [True]
