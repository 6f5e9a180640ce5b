"""Hydra's internals that peftsweep stands on: where one moves, the test that fails names it."""

import ast
import importlib
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

import peftsweep
from peftsweep.config.hydra_internals import BASIC_LAUNCHER, BASIC_SWEEPER, failure_of, flags_parser, no_callbacks

PACKAGE = Path(peftsweep.__file__).parent


def test_get_args_parser_reads_hydras_flags():
    options = flags_parser().parse_args(["-m", "--config-dir", "mine", "--cfg", "job", "lr=1"])
    assert (options.multirun, options.config_dir, options.cfg, options.overrides) == (True, "mine", "job", ["lr=1"])
    assert {"help", "hydra_help", "info", "shell_completion"} <= vars(options).keys()


def test_callbacks_without_any_configured_do_nothing():
    no_callbacks().on_job_start(config=None, task_function=None)


def test_a_job_return_keeps_what_ended_the_job():
    ended = JobReturn()
    ended.return_value, ended.status = ValueError("why"), JobStatus.FAILED
    assert isinstance(failure_of(ended), ValueError)
    ended.return_value, ended.status = 0.5, JobStatus.COMPLETED
    assert failure_of(ended) is None


@pytest.mark.parametrize(("name", "kind"), [(BASIC_LAUNCHER, Launcher), (BASIC_SWEEPER, Sweeper)])
def test_hydras_own_plugins_are_where_configurations_say(name, kind):
    module, _, plugin = name.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), plugin), kind)


def test_hydras_and_omegaconfs_internals_are_touched_in_one_place():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "hydra_internals.py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
                assert not module.startswith(("hydra._internal", "omegaconf._")), path
