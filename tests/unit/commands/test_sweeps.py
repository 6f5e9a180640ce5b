"""Sweeps that are asked for wrongly: one message each, exit code 2, and no job has begun."""

import logging
import sys
from pathlib import Path

import optuna
import pytest
import rich

from peftsweep.__main__ import main
from peftsweep.config.compose import parse_command_line
from peftsweep.sweeps.execution.controller import only_controller
from peftsweep.sweeps.protocol.request import read_request
from peftsweep.sweeps.protocol.specification import build_sweep_spec, save_spec
from peftsweep.sweeps.start import build_settings

FAIR = ["-m", "hydra/sweeper=fair", "task=metamath", "tracking=none"]
SWEEP = Path("outputs/sweeps/s")


@pytest.fixture(autouse=True)
def fresh_command_line(tmp_path, monkeypatch):
    """Each command line in a folder of its own; Hydra's logging and environment don't reach the next test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["peftsweep"])
    monkeypatch.setenv("COLUMNS", "1000")  # messages whole
    monkeypatch.setattr(rich, "_console", None)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


class Told:
    """What a command line answered: its exit code, and all it printed on one line."""

    def __init__(self, capfd):
        self._capfd = capfd

    def __call__(self, *arguments):
        self._capfd.readouterr()
        try:
            self.code = main(list(arguments))
        except SystemExit as error:
            self.code = error.code
        printed = self._capfd.readouterr()
        self.text = " ".join((printed.out + printed.err).split())
        return self


@pytest.fixture
def run(capfd):
    return Told(capfd)


def assert_refused(told, *fragments):
    """The rule, the value and the way out are told, and no job has begun."""
    assert told.code == 2, told.text
    assert "Traceback" not in told.text
    for fragment in fragments:
        assert fragment in told.text
    assert list(Path().rglob("config.yaml")) == []  # of a job
    assert list(Path().rglob("table.json")) == []


def test_a_good_sweep_is_specified(run):
    """The counterpart of every test below: without the mistake, the same command line is taken."""
    told = run(*FAIR, "method=lora,ia3", "dry_run=true", "n_trials=4")
    assert told.code == 0, told.text
    rates = "pocket-llama searches 10 times the published learning rates (hparams.lr_scale)"
    for fragment in ("lora", "ia3", "hparams.lr=interval(", rates):
        assert fragment in told.text
    assert list(Path().iterdir()) == []


SPACE_MISTAKES = {
    "nothing to search": (
        ["hparams.lr=1e-3", "method.capacity=8"],
        ["a study needs something to search", "lr=interval("],
    ),
    "an empty range": (["hparams.lr=range(1,1)"], ["a search space must not be empty", "range(1,1)"]),
    "no choices": (["hparams.lr=choice()"], ["hparams.lr=choice()"]),
    "a reversed range": (["hparams.lr=interval(1e-2,1e-5)"], ["low < high", "interval(1e-2,1e-5)"]),
    "a range of one value": (["hparams.lr=interval(1e-5,1e-5)"], ["low < high", "interval(1e-5,1e-5)"]),
    "a reversed range with a tag": (["hparams.lr=tag(log,interval(1e-2,1e-5))"], ["low < high"]),
    "a rate from zero on": (["hparams.lr=interval(0,1e-2)"], ["hparams.lr must be above 0"]),
    "a range of words": (["hparams.lr=interval(a,b)"], ["hparams.lr=interval(a,b)"]),
    "an unknown key": (["hparams.lrr=interval(1,2)"], ["no such setting", "'hparams.lrr'", "Did you mean hparams.lr"]),
    "a choice below a bound": (["method.capacity=choice(-8,4)"], ["method.capacity must be at least 1", "-8"]),
    "a choice of another type": (["method.capacity=choice(8,a)"], ["method.capacity must be a whole number", "'a'"]),
}
SETTING_MISTAKES = {
    "no trials": (["n_trials=0"], ["n_trials must be at least 1", "0"]),
    "trials in words": (["n_trials=many"], ["n_trials must be a whole number", "'many'"]),
    "a misspelt setting": (["n_trial=3"], ["no such setting", "'n_trial'"]),
    "two budgets": (["n_trials=3", "budget.tokens=100"], ["one budget", "n_trials and tokens", "Keep one"]),
    "two other budgets": (["budget.gpu_seconds=3", "budget.tokens=100"], ["one budget", "tokens and gpu_seconds"]),
    "a budget of nothing": (["budget.tokens=0"], ["budget.tokens must be at least 1"]),
    "an objective of test data": (
        ["objective=test/accuracy"],
        ["task metamath reports", "'test/accuracy'", "valid/loss"],
    ),
    "an objective of images": (["objective=valid/dino_similarity"], ["task metamath reports", "valid/loss"]),
    "an unknown sampler": (["sampler.name=nsga"], ["sampler.name must be one of gp, tpe, random", "'nsga'"]),
    "an unknown pruner": (["pruner.name=asha"], ["pruner.name must be one of successive_halving", "'asha'"]),
    "an unknown argument of the sampler": (
        ["sampler.name=tpe", "+hydra.sweeper.sampler.kwargs.gama=1"],
        ["TPESampler takes no such argument", "'gama'", "gamma"],
    ),
    "an unknown argument of the pruner": (
        ["+hydra.sweeper.pruner.kwargs.min_resourc=1"],
        ["SuccessiveHalvingPruner takes no such argument", "'min_resourc'", "min_resource"],
    ),
    "a pruner's argument of another type": (
        ["+hydra.sweeper.pruner.kwargs.reduction_factor=many"],
        ["SuccessiveHalvingPruner refuses its arguments", "many"],
    ),
    "a constraint without a bound": (["constraint=memory"], ["must be written metric<=number", "'memory'", "12GB"]),
    "a constraint the wrong way round": (["'constraint=12GB<=memory'"], ["constraint"]),
    "a constraint on nothing known": (["constraint=memry<=12GB"], ["no metric has this name", "'memry'", "memory"]),
    "a constraint in an unknown unit": (["constraint=memory<=12XB"], ["a unit of its metric", "12XB", "GB"]),
    "a constraint in words": (["constraint=memory<=twelve"], ["constraint", "twelve"]),
    "a constraint on test data": (["constraint=accuracy>=0.5"], ["reads no test data", "peftsweep recommend"]),
    "an unknown method": (["method=lora,lorra"], ["no method of this name", "'lorra'", "Did you mean lora"]),
    "a pattern that fits nothing": (["method=glob(nothing*)"], ["needs at least one value", "glob(nothing*)"]),
    "an unknown task": (["task=metamath,imaginary"], ["no task of this name", "'imaginary'"]),
    "no workers": (["workers=0"], ["workers must be at least 1"]),
    "an unknown way to go on": (["if_exists=maybe"], ["if_exists must be one of resume, raise, new", "'maybe'"]),
    "an unknown launcher": (["hydra/launcher=nowhere"], ["no hydra/launcher of this name", "'nowhere'"]),
    "a name that leaves the folder": (["name=../other"], ["a sweep's name", "'../other'"]),
}


@pytest.mark.parametrize("mistake", SPACE_MISTAKES)
def test_a_wrong_search_space_is_told(run, mistake):
    arguments, fragments = SPACE_MISTAKES[mistake]
    assert_refused(run(*FAIR, "method=lora", *arguments), *fragments)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("mistake", SETTING_MISTAKES)
def test_a_wrong_setting_of_the_sweep_is_told(run, mistake):
    arguments, fragments = SETTING_MISTAKES[mistake]
    assert_refused(run(*FAIR, "method=lora", *arguments), *fragments)
    assert list(Path().iterdir()) == []


def test_all_wrong_settings_are_told_at_once(run):
    told = run(*FAIR, "method=lora", "constraint=memry<=1", "+hydra.sweeper.pruner.kwargs.no=1", "name=a/b")
    assert_refused(told, "3 problems", "'memry'", "'no'", "'a/b'")


def test_more_workers_than_gpus_need_leave(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    two = [*FAIR, "method=lora", "workers=2", "dry_run=true"]
    assert_refused(run(*two), "each worker needs a GPU of its own, and there are 1", "allow_shared_gpu=true")
    assert run(*two, "allow_shared_gpu=true").code == 0


STORAGES = {
    "a missing folder": (
        "sqlite:////nowhere/at/all.db",
        ["the storage of studies must be reachable", "unable to open"],
    ),
    "no such kind": ("nonsense", ["the storage of studies must be reachable", "'nonsense'"]),
    "no driver or no server": (
        "postgresql://me:secret@127.0.0.1:9/studies",
        ["the storage of studies must be reachable", "peftsweep[server]"],
    ),
}


@pytest.mark.parametrize("mistake", STORAGES)
def test_a_storage_that_cannot_be_reached_is_told(run, mistake):
    url, fragments = STORAGES[mistake]
    told = run(*FAIR, "method=lora", f"storage='{url}'")
    assert_refused(told, *fragments)
    assert "secret" not in told.text


def plan_of(*typed):
    overrides = parse_command_line(["task=metamath", "tracking=none", *typed]).overrides
    spec = build_sweep_spec(read_request(overrides, None), FAIR, build_settings({"name": "s"}))
    spec.path.mkdir(parents=True)
    save_spec(spec)
    return spec


def test_a_sweep_of_this_name_with_another_space_is_told(run):
    plan_of("method=lora,ia3")
    told = run(*FAIR, "method=lora,ia3", "hparams.lr=interval(1e-4,1e-3)", "name=s")
    assert_refused(told, "study lora exists with another search space", "interval(0.0001,0.001)", "name=", "study ia3")


def test_a_sweep_of_this_name_with_other_settings_is_told(run):
    plan_of("method=lora")
    told = run(*FAIR, "method=lora", "hparams.max_steps=7", "name=s")
    assert_refused(told, "study lora exists with other settings", "hparams.max_steps=7", "if_exists=new")


def test_a_study_of_somebody_else_in_a_shared_storage_is_told(run, tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db"
    study = optuna.create_study(storage=url, study_name="s/lora")
    study.add_trial(
        optuna.trial.create_trial(
            value=1.0, params={"depth": 3}, distributions={"depth": optuna.distributions.IntDistribution(1, 9)}
        )
    )
    told = run(*FAIR, "method=lora", "name=s", f"storage='{url}'")
    assert_refused(told, "a study of this name exists", "depth", "'s/lora'")


def test_a_sweep_that_must_be_new_and_exists_is_told(run):
    plan_of("method=lora")
    assert_refused(run(*FAIR, "method=lora", "name=s", "if_exists=raise"), "this one exists", "if_exists=resume")


def test_a_second_controller_is_told_how_to_join(run):
    with only_controller(SWEEP.absolute()):
        told = run(*FAIR, "method=lora", "name=s")
    assert_refused(told, "a sweep has one controller", "peftsweep worker")


@pytest.mark.parametrize("command", ["worker", "retry"])
def test_a_folder_that_is_no_sweep_is_told(run, command):
    told = run(command, "nowhere")
    assert told.code != 0
    for fragment in ("sweep.json", "'nowhere'", "outputs/sweeps"):
        assert fragment in told.text
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", ["s", "outputs/sweeps/sweep-of-monday", "sweep-of"])
def test_a_sweep_is_known_by_its_name_a_beginning_of_it_or_its_folder(run, name, monkeypatch):
    plan_of("method=lora")
    SWEEP.rename(SWEEP.with_name("sweep-of-monday"))
    monkeypatch.setattr("peftsweep.sweeps.start.retry_failed", lambda folder: 0)
    assert run("retry", name).text.startswith("0 failed trials wait to be run again: python -m peftsweep -m")


def test_the_settings_of_a_sweep_without_its_sweeper_are_told(run):
    assert_refused(run("-m", "method=lora", "n_trials=3"), "no such setting", "'n_trials'")
