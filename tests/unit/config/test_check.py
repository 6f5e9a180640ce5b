"""What check.py and trust.py find in a composed configuration; whole command lines are in test_cli.py."""

import pytest
from omegaconf import OmegaConf

from peftsweep.config.check import build_config, check_and_build, check_job
from peftsweep.config.compose import compose_config, parse_command_line
from peftsweep.config.schema import JobConfig
from peftsweep.modalities.text.settings import SftConfig


def problems(*overrides):
    """All problems of a job, each as text."""
    line = parse_command_line(overrides)
    return [str(problem) for problem in check_job(list(overrides), line)[0]]


def test_the_default_job_has_no_problem():
    assert problems() == []


def test_a_problem_names_the_rule_the_value_and_its_source():
    assert problems("hparams.warmup_fraction=2") == [
        "hparams.warmup_fraction must be at most 1, got 2.0 (from the command line)."
    ]


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("seed=-1", "seed must be at least 0"),
        ("seed=4294967296", "seed must be at most 4294967295"),
        ("hparams.batch_size=0", "hparams.batch_size must be at least 1"),
        ("hparams.lr=-1", "hparams.lr must be above 0"),
        ("hparams.lr=nan", "hparams.lr must be above 0"),
        ("method.capacity=0", "method.capacity must be at least 1"),
        ("model.dtype=float8", "model.dtype must be one of"),
        ("stage=tuning", "stage must be one of"),
        ("task.test_rows=0", "task.test_rows must be at least 1"),
        ("hparams.max_steps=1.5", "hparams.max_steps must be a whole number"),
        ("method.search_space.lr=[1,0]", "method.search_space.lr must be [low, high]"),
        ("method.peft=3", "method.peft must be"),
    ],
)
def test_a_value_outside_its_bounds_is_a_problem(override, rule):
    found = problems(override)
    assert len(found) == 1
    assert found[0].startswith(rule)


@pytest.mark.parametrize("override", ["task.train_rows=null", "hparams.eval_every=0", "hparams.max_grad_norm=inf"])
def test_a_value_on_its_bound_is_none(override):
    assert problems(override) == []


def test_keys_of_one_task_are_unknown_to_another():
    assert "there is no such setting, got 'task.messages_column'" in problems("++task.messages_column=m")[0]


def test_arguments_of_a_peft_config_are_left_to_peft():
    assert problems("+method.peft.use_rslora=true") == []


def test_a_task_that_nobody_wrote_is_told():
    found = problems("task.name=metamth")
    assert found == [
        "task.name must be a task of modality text, got 'metamth' (from the command line). Did you mean metamath?"
    ]


def test_a_modality_that_nobody_wrote_is_told():
    found = problems("task.modality=txt")
    assert found == ["there is no modality of this name, got 'txt' (from the command line). Did you mean text?"]


def test_prior_pictures_need_a_prompt():
    [found] = problems("task=image-gen", "task.prior_photos=4")
    assert found.startswith("prior preservation needs task.prior_prompt, got 4 (from task.prior_photos).")


def test_a_built_configuration_is_plain_data_with_interpolations_resolved():
    config = build_config(compose_config(["method.capacity=3"]))
    assert isinstance(config, JobConfig)
    assert config.method.peft["r"] == 3
    assert not OmegaConf.is_config(config.method.peft)


def test_a_built_configuration_has_its_tasks_own_fields():
    assert isinstance(build_config(compose_config(["task=sft"])).task, SftConfig)


def test_checking_changes_nothing():
    config = compose_config([])
    before = OmegaConf.to_yaml(config)
    check_and_build(config)
    assert OmegaConf.to_yaml(config) == before


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "peftsweep.__main__.os.system",
        "peftsweep.__main__.main",
        "hydra.experimental.callbacks.logging.os.system",
        "hydra_plugins.anything.Launcher.os.system",
        "hydra_plugins.somebody.elses.FastLauncher",
    ],
)
def test_code_outside_the_trusted_classes_is_refused(target):
    assert f"got '{target}'" in problems(f"+hydra.callbacks.x._target_={target}")[0]


@pytest.mark.parametrize(
    "target", ["hydra.experimental.callbacks.LogJobReturnCallback", "hydra_plugins.peftsweep_fair.FairSweeper"]
)
def test_trusted_classes_are_accepted(target):
    assert problems(f"+hydra.callbacks.x._target_={target}") == []


def test_a_plugin_counts_once_the_user_has_chosen_it():
    chosen = ["hydra/launcher=basic", "++hydra.launcher._target_=hydra_plugins.somebody.elses.FastLauncher"]
    assert problems(*chosen) == []
    assert len(problems(chosen[1])) == 1


@pytest.mark.parametrize("override", ["++model.trust_remote_code=true", "+hydra.job.env_set.TOKENIZERS_PARALLELISM=x"])
def test_what_can_run_code_may_be_typed(override):
    assert problems(override) == []
