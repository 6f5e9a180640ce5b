"""From a command line, or a call in a notebook, to a sweep that runs: specify, check, run, tell what was found."""

from __future__ import annotations

import itertools
import logging
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from peftsweep.config.check import check_command_line, schema_problems
from peftsweep.config.compose import CommandLine, compose_config, parse_command_line
from peftsweep.config.hydra_internals import BASIC_LAUNCHER
from peftsweep.config.schema import SweepConfig
from peftsweep.config.units import parse_margin
from peftsweep.errors import ConfigError, DataError, Interrupted, Problem
from peftsweep.job.preflight import check_jobs
from peftsweep.records.jobs import load_folder
from peftsweep.records.quantities import counted
from peftsweep.records.redact import redact_forms
from peftsweep.records.results import Stage
from peftsweep.report.analysis.groups import compare
from peftsweep.report.analysis.sentences import answer
from peftsweep.sweeps.execution.controller import Controller, only_controller
from peftsweep.sweeps.execution.devices import find_gpus
from peftsweep.sweeps.execution.launchers import HydraPool, LocalPool, WorkerPool
from peftsweep.sweeps.execution.slots import CLUSTER_LAUNCHERS, Slot, cluster_slots, local_slots
from peftsweep.sweeps.execution.stopping import Stop
from peftsweep.sweeps.execution.storage import JOURNAL, open_storage
from peftsweep.sweeps.execution.tickets import SweepTickets, refuse_foreign_studies
from peftsweep.sweeps.live import Progress
from peftsweep.sweeps.protocol.prior import with_prior
from peftsweep.sweeps.protocol.pruning import build_pruner
from peftsweep.sweeps.protocol.request import FAIR_SWEEPER, read_request, with_full_sweep_keys
from peftsweep.sweeps.protocol.resume import continued, placed
from peftsweep.sweeps.protocol.search import build_sampler
from peftsweep.sweeps.protocol.specification import (
    SweepSpec,
    build_sweep_spec,
    check_looks,
    load_spec,
    save_spec,
    trial_limits,
    with_parents,
)
from peftsweep.sweeps.protocol.trials import current
from peftsweep.sweeps.publishing import finish_studies, open_parents
from peftsweep.sweeps.table import SweepTable
from peftsweep.sweeps.terminal import (
    confirmation_cost,
    notes,
    print_dry_run,
    print_final_table,
    print_plain,
    prior_lines,
    scaled_rates,
    wide_console,
)
from peftsweep.tracking.store import how_to_look

log = logging.getLogger(__name__)

LOG_FILE = "sweep.log"
SWEEPER_KEY = "hydra.sweeper."
FOLDER_NAME = re.compile(r"\w[\w.-]*")
LOCAL_LAUNCHER = "hydra_plugins.peftsweep_fair.LocalLauncher"


def start_from_hydra(
    arguments: Sequence[str], settings: Mapping[str, Any], context: HydraContext, config: DictConfig
) -> SweepTable | None:
    """What `hydra/sweeper=fair` does. Raises ConfigError before anything starts; SystemExit where it was stopped or
    nothing was found."""
    typed = [str(text).removeprefix(SWEEPER_KEY) for text in config.hydra.overrides.hydra]
    own = [text for text in typed if not text.startswith("hydra.mode=")]  # Hydra's own note of -m
    sources = config.hydra.runtime.config_sources
    config_dir = next((Path(source.path) for source in sources if source.provider == "command-line"), None)
    line = [*(["--config-dir", str(config_dir)] if config_dir else []), "-m", *own, *arguments]
    spec = _specify(line, arguments, build_settings(settings), config_dir)
    try:
        table = run_sweep(spec, _pool_for(spec, config, context))
    except Interrupted as error:
        print(f"peftsweep: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    if table and all((row.score if spec.looks else row.objective) is None for row in table.rows):
        raise SystemExit(1)
    return table


def sweep(*overrides: str, config_dir: str | Path | None = None, **settings: Any) -> Any:
    """Run a fair sweep from Python and answer its table, a `pandas.DataFrame` with a row for each study.

    overrides: as on the command line, `"method=lora,oft"`, `"hparams.lr=interval(1e-5,1e-2)"`; settings: those of
    `conf/hydra/sweeper/fair.yaml`, `n_trials=8`, `confirm={"seeds": 2}`. Workers are processes of this machine.

        peftsweep.sweep("method=lora,oft", "task=metamath", n_trials=8, workers=2)

    Raises ConfigError with all problems before anything starts; Interrupted where Ctrl-C ended it (call it again to go
    on).
    """
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    line = parse_command_line([*flags, "-m", *with_full_sweep_keys(overrides)])
    check_jobs(check_command_line(line), hub=False)
    given = OmegaConf.to_container(compose_config([FAIR_SWEEPER], line.config_dir, with_hydra=True).hydra.sweeper)
    assert isinstance(given, dict)
    merged = OmegaConf.merge({k: v for k, v in given.items() if k != "_target_"}, settings)
    chosen = build_settings(OmegaConf.to_container(merged))  # type: ignore[arg-type]
    typed = [*flags, "-m", FAIR_SWEEPER, *_as_arguments(settings), *overrides]
    spec = _specify(typed, overrides, chosen, line.config_dir)
    table = run_sweep(spec, LocalPool(*_local_slots(spec)))
    return table.to_frame() if table else None


def _as_arguments(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found += _as_arguments(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={'null' if value is None else value}")
    return found


def build_settings(values: Mapping[str, Any]) -> SweepConfig:
    """Checked settings of the sweeper. Raises ConfigError with all that is wrong: a key or type, two budgets, and what
    would otherwise be met by the first trial that ends, or asks for its settings."""
    plain: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(dict(values)))  # type: ignore[assignment]
    problems = list(schema_problems(OmegaConf.create(plain), SweepConfig, SWEEPER_KEY, CommandLine(())))
    budgets = {"n_trials": plain.get("n_trials"), **(plain.get("budget") or {})}
    given = [key for key, value in budgets.items() if value is not None]
    if len(given) > 1:
        fix = "Keep one: n_trials, budget.tokens or budget.gpu_seconds."
        problems.append(Problem("a study has one budget", " and ".join(given), "the command line", fix))
    if problems:
        raise ConfigError(*problems)
    merged = OmegaConf.merge(OmegaConf.structured(SweepConfig), plain)
    settings: SweepConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
    sampler, pruner = settings.sampler, settings.pruner
    checks: list[Callable[[], object]] = [
        lambda: build_sampler(sampler.name, sampler.kwargs, settings.sampler_seed),
        lambda: build_pruner(pruner.name, pruner.kwargs, max_steps=100),
        lambda: trial_limits(settings.constraint),
        lambda: check_looks(settings.confirm.looks),
        lambda: settings.confirm.margin and parse_margin(settings.confirm.margin),
    ]
    if settings.name is not None and not FOLDER_NAME.fullmatch(settings.name):
        rule = "a sweep's name must be that of a folder under outputs/sweeps"
        problems.append(Problem(rule, settings.name, "name", "Use letters, digits, '-', '_' and '.'."))
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return settings


def _specify(
    line: Sequence[str], arguments: Sequence[str], settings: SweepConfig, config_dir: Path | None
) -> SweepSpec:
    overrides = parse_command_line(list(arguments)).overrides
    return placed(with_prior(build_sweep_spec(read_request(overrides, config_dir), line, settings, config_dir)))


def _pool_for(spec: SweepSpec, config: DictConfig, context: HydraContext) -> WorkerPool:
    target = str(config.hydra.launcher._target_)
    is_cluster = target.rpartition(".")[2] in CLUSTER_LAUNCHERS
    tune, confirm = cluster_slots(spec.settings.workers) if is_cluster else _local_slots(spec)
    if target == LOCAL_LAUNCHER:
        return LocalPool(tune, confirm)
    if target == BASIC_LAUNCHER:
        tune = tune[:1]  # it runs one job after the other, in this process
    return HydraPool(tune, confirm, context, config)


def _local_slots(spec: SweepSpec) -> tuple[list[Slot], list[Slot]]:
    trials = (spec.n_trials or 100) * len(spec.studies)
    gpus = [] if spec.device == "cpu" else find_gpus()
    return local_slots(
        spec.settings.workers, gpus, spec.device, ranks=spec.ranks, may_share=spec.allow_shared_gpu, trials=trials
    )


def run_sweep(spec: SweepSpec, pool: WorkerPool) -> SweepTable | None:
    """Run a specified sweep to its end, print its table and answer it; of a dry run only tell what it would do.

    Raises ConfigError before anything starts (see `build_sweep_spec`; storage, another controller, another space);
    Interrupted after what was asked to stop has stopped: the same command goes on.
    """
    if spec.settings.dry_run:
        console = wide_console()
        print_dry_run(spec, pool.workers, console)
        print_plain(console, confirmation_cost(spec))
        for told in scaled_rates(spec):
            print_plain(console, f"rates   {told}")
        for told in prior_lines(spec):
            print_plain(console, f"prior   {told}")
        print_plain(console, f"folder  {spec.folder}")
        return None
    console = Console(stderr=True)
    spec.path.mkdir(parents=True, exist_ok=True)
    with only_controller(spec.path), _messages(spec.path / LOG_FILE, console):
        storage = open_storage(spec.path, spec.settings.storage)
        spec = continued(spec, lambda text: print_plain(console, text))
        refuse_foreign_studies(spec, storage)
        parents = open_parents(spec)
        spec = with_parents(spec, parents.run_ids)
        save_spec(spec)
        log.info("Begun: %s", redact_forms(resume_command(spec.path)))
        _print_start(spec, pool, console)
        with Progress(spec, console) as progress:
            controller = Controller(spec, pool, progress)
            table = controller.run()
        table.save()
        finish_studies(controller.spec, parents, table, storage, interrupted=controller.stop is not Stop.NO)
    _print_end(spec, table, controller.stop)
    if controller.stop is not Stop.NO:
        raise Interrupted("the sweep was stopped; the same command goes on")
    return table


@contextmanager
def _messages(path: Path, console: Console) -> Iterator[None]:
    """Warnings go above the live lines; with all else that happens, and the times of it, into sweep.log."""
    logger = logging.getLogger("peftsweep")
    kept = logging.FileHandler(path)
    kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    shown = RichHandler(
        logging.WARNING, console, show_time=False, show_level=False, show_path=False, highlighter=NullHighlighter()
    )
    before = logger.level, logger.propagate
    logger.propagate = False
    logger.setLevel(logging.INFO)
    for handler in (kept, shown):
        logger.addHandler(handler)
    try:
        yield
    finally:
        level, logger.propagate = before
        logger.setLevel(level)
        for handler in (kept, shown):
            logger.removeHandler(handler)
        kept.close()


def _print_start(spec: SweepSpec, pool: WorkerPool, console: Console) -> None:
    def line(word: str, text: str) -> None:
        print_plain(console, f"{word:<10}{redact_forms(text)}")

    trials = f"{spec.n_trials} trials each" if spec.n_trials else "a budget each"
    line("sweep", f"{spec.name}: {len(spec.studies)} studies, {trials}, {counted(pool.workers, 'worker')}")
    line("folder", spec.folder)
    for told in prior_lines(spec):
        line("prior", told)
    line("go on", resume_command(spec.path))
    line("join", f"python -m peftsweep worker {shlex.quote(spec.folder)}")
    if spec.tracking:
        line("mlflow", how_to_look(spec.tracking_uri, spec.experiment))
    if spec.settings.storage is None:
        line("optuna", f"optuna-dashboard {shlex.quote(str(spec.path / JOURNAL))}")


def _print_end(spec: SweepSpec, table: SweepTable, stop: Stop) -> None:
    console = wide_console()
    print_final_table(table, console)
    for note in (*notes(table), *_verdicts(spec)):
        print_plain(console, note)
    if stop is not Stop.NO:
        print_plain(console, f"go on   {redact_forms(resume_command(spec.path))}")
    print_plain(console, f"report  python -m peftsweep report sweep={spec.name}")
    print_plain(console, f"files   {spec.folder}")


def _verdicts(spec: SweepSpec) -> Iterator[str]:
    """What `peftsweep report` will say, of each set of studies that are compared."""
    try:
        groups = compare(load_folder(spec.path)).groups if spec.looks else ()
    except DataError as error:  # the sweep is over all the same
        yield f"no verdict: {error}"
        return
    for group in groups:
        told = answer(group)
        yield from (f"\n{told.headline}" if len(groups) == 1 else f"\n{group.title}\n{told.headline}", *told.details)


def resume_command(folder: Path) -> str:
    """The command that goes on with a sweep."""
    return "python -m peftsweep " + shlex.join(load_spec(folder).arguments)


def retry_failed(folder: Path) -> int:
    """Make a new ticket for each failed trial, with its settings; answers how many. Nothing else is run again."""
    spec = load_spec(folder)
    opened, count = SweepTickets(open_storage(folder, spec.settings.storage)), 0
    for study, stage in itertools.product(spec.studies, (Stage.TUNE, Stage.CONFIRM)):
        try:
            tickets = opened.of(study, stage)
        except KeyError:  # not begun
            continue
        for trial in current(tickets.trials()):
            if trial.is_finished and not trial.is_result:
                terms = trial.terms
                tickets.add(replace(terms, params=trial.params or terms.params, retry_of=trial.number))
                count += 1
    return count
