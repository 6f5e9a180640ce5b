"""A sweep as it was asked for, plain and complete: `sweep.json` in its folder, from which any worker can take part."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from peftsweep.config.compose import compose_config
from peftsweep.config.registry import default_objective, find_modality
from peftsweep.config.schema import (
    BudgetConfig,
    ConfirmConfig,
    JobConfig,
    PrunerConfig,
    SamplerConfig,
    SweepConfig,
)
from peftsweep.config.units import parse_margin
from peftsweep.errors import ConfigError, DataError, PeftsweepError, Problem
from peftsweep.job.resolve import resolve_job
from peftsweep.records.environment import describe_environment
from peftsweep.records.files import SWEEP_FILE, SWEEPS_FOLDER, sweep_folders, write_whole
from peftsweep.records.job_settings import flatten, without_circumstances
from peftsweep.records.limits import Limit, parse_limits
from peftsweep.records.metrics import METRICS, Direction, candidates
from peftsweep.records.redact import redact_params
from peftsweep.records.space import Space, read_space
from peftsweep.records.studies import confirm_looks
from peftsweep.sweeps.protocol.pruning import BOOTSTRAP_COUNT, report_steps
from peftsweep.sweeps.protocol.request import Request, build_space

SPEC_SCHEMA = 1
DEFAULT_TRIALS = 10
METHODS_IN_NAME = 3  # of a sweep
# A trial never reads test data, so that a limit on these would keep nobody out.
NOT_OF_A_TRIAL = ("test/", "base/")


@dataclass(frozen=True)
class StudySpec:
    """One study: all trials of one method x task x model (and whatever else the command line spans)."""

    label: str  # its folder, and its name in tables
    name: str  # in the storage and in MLflow: <sweep>/<label>
    overrides: tuple[str, ...]  # what its jobs have in common, as typed
    method: str
    model: str
    task: str
    seed: int
    max_steps: int
    step_rows: int  # rows of one optimizer step
    row_tokens: int  # the longest row, in tokens
    space: Space
    asked_space: Space  # what the command line and the method's YAML say; `extend` may have widened `space`
    centre: dict[str, Any] = field(default_factory=dict)  # settings of an earlier sweep that the search starts around
    job: dict[str, str] = field(default_factory=dict)  # all settings of its jobs before a search, to tell what changed
    parent_run_id: str | None = None  # its MLflow run, under which its jobs are nested
    ranks: int = 1  # devices that each of its jobs takes


@dataclass(frozen=True)
class SweepSpec:
    """All studies of one command, and the rules they share. Nothing in it changes while the sweep runs, except that
    ranges grow with `extend`."""

    name: str
    folder: str
    working_folder: str  # relative paths in overrides start here
    config_dir: str | None
    arguments: tuple[str, ...]  # the command line, to continue with
    objective: str
    settings: SweepConfig
    studies: tuple[StudySpec, ...]
    extensions: int = 0  # how often `extend` has widened ranges, each time for half the budget again
    tracking: bool = True
    tracking_uri: str | None = None
    experiment: str = "peftsweep"
    device: str = "auto"
    allow_shared_gpu: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        return "maximize" if METRICS[self.objective].direction is Direction.HIGHER else "minimize"

    @property
    def limits(self) -> tuple[Limit, ...]:
        return trial_limits(self.settings.constraint)

    @property
    def n_trials(self) -> int | None:
        """Trials of each study, or None where tokens or seconds are the budget."""
        budget = self.settings.budget
        paid_otherwise = budget.tokens is not None or budget.gpu_seconds is not None
        asked = self.settings.n_trials or (None if paid_otherwise else DEFAULT_TRIALS)
        return None if asked is None else asked + self.extensions * max(1, asked // 2)

    @property
    def tokens(self) -> int | None:
        """Training tokens of each study, where they are the budget."""
        asked = self.settings.budget.tokens
        return None if asked is None else asked + self.extensions * asked // 2

    def job_seconds(self, study: StudySpec) -> float | None:
        """Of all jobs of a study, where device seconds are the budget: those of all its devices together."""
        asked = self.settings.budget.gpu_seconds
        return None if asked is None else asked * (1 + self.extensions / 2) / study.ranks

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many fresh seeds the best settings are judged; none where nothing is confirmed."""
        confirm = self.settings.confirm
        return confirm_looks(confirm.rule, confirm.looks, confirm.seeds)

    @property
    def default_seeds(self) -> int:
        """With how many fresh seeds the published default is run."""
        asked = self.settings.confirm.default_seeds
        return min(self.looks, default=0) if asked is None else min(asked, max(self.looks, default=0))

    @property
    def margin(self) -> float | None:
        """Below which differences of scores don't matter; None: the size of the test set tells."""
        text = self.settings.confirm.margin
        return None if text is None else parse_margin(text)

    def study(self, label: str) -> StudySpec:
        return next(study for study in self.studies if study.label == label)

    @property
    def pruner_kwargs(self) -> dict[str, Any]:
        """Arguments of the pruner. In a short study fewer trials are probes, or none would be left to finish."""
        pruner = self.settings.pruner
        if pruner.name != "successive_halving" or self.n_trials is None:
            return pruner.kwargs
        return {"bootstrap_count": min(BOOTSTRAP_COUNT, self.n_trials // 2)} | pruner.kwargs

    @property
    def ranks(self) -> int:
        """Devices of the job that takes most."""
        return max(study.ranks for study in self.studies)

    def report_steps(self, study: StudySpec) -> tuple[int, ...]:
        return report_steps(study.max_steps, self.settings.pruner.name, self.pruner_kwargs)


def build_sweep_spec(
    request: Request, arguments: Sequence[str], settings: SweepConfig, config_dir: Path | None = None
) -> SweepSpec:
    """Everything that the sweep will do, found without loading anything.

    Raises:
        ConfigError: with all problems of all studies.
    """
    problems: list[Problem] = []
    composed: list[tuple[dict[str, str], tuple[str, ...], JobConfig, Space]] = []
    for cell in request.cells():
        overrides = (*(f"{key}={value}" for key, value in cell.items()), *request.fixed)
        try:
            job = resolve_job(compose_config(overrides, config_dir), overrides)
            composed.append((cell, overrides, job, build_space(job, request)))
        except PeftsweepError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*{str(problem): problem for problem in problems}.values())
    jobs = [job for _, _, job, _ in composed]
    name = settings.name or _name_of(request, jobs)
    labels = _labels([(cell, job) for cell, _, job, _ in composed])
    studies = tuple(
        _study(label, f"{name}/{label}", overrides, job, space)
        for label, (_, overrides, job, space) in zip(labels, composed, strict=True)
    )
    first = jobs[0]
    return SweepSpec(
        name=name,
        folder=str((SWEEPS_FOLDER / name).absolute()),
        working_folder=str(Path.cwd()),
        config_dir=str(config_dir) if config_dir else None,
        arguments=tuple(arguments),
        objective=_objective(jobs, settings.objective),
        settings=settings,
        studies=studies,
        tracking=first.tracking.enabled,
        tracking_uri=first.tracking.uri,
        experiment=first.tracking.experiment,
        device=first.device,
        allow_shared_gpu=first.allow_shared_gpu,
        environment=describe_environment(),
    )


def _objective(jobs: Sequence[JobConfig], asked: str | None) -> str:
    """The metric that trials are judged by, which every task of the sweep must report while it trains."""
    for job in jobs:
        known = find_modality(job.task.modality).objectives(job.task)
        if asked is not None and asked not in known:
            rule = f"the objective must be one that task {job.task.name} reports during training"
            raise ConfigError(Problem(rule, asked, "objective", f"Choose from: {', '.join(known)}."))
    return asked or default_objective(jobs[0])


def _study(label: str, name: str, overrides: tuple[str, ...], job: JobConfig, space: Space) -> StudySpec:
    hparams, matters = job.hparams, without_circumstances(flatten(redact_params(asdict(job))))
    return StudySpec(
        label=label,
        name=name,
        overrides=overrides,
        method=job.method.name,
        model=job.model.name,
        task=job.task.name,
        seed=job.seed,
        max_steps=hparams.max_steps,
        step_rows=hparams.batch_size * hparams.gradient_accumulation,
        row_tokens=find_modality(job.model.modality).row_tokens(job),
        space=space,
        asked_space=space,
        job={key: str(value) for key, value in matters.items()},
        ranks=job.parallel.ranks,
    )


def _labels(cells: Sequence[tuple[Mapping[str, str], JobConfig]]) -> list[str]:
    """The method, and where other axes are swept over their values too: `lora`, `lora-seed-1`."""
    found: list[str] = []
    for cell, job in cells:
        words = [job.method.name]
        for key, value in cell.items():
            if key != "method":
                named = {"model": job.model.name, "model.id": job.model.name, "task": value}
                named |= {"hparams": value, "experiment": value}
                words.append(named.get(key, f"{key.split('.')[-1]}-{value}"))
        label = _as_folder("-".join(words))[:100]
        unique, number = label, 2
        while unique in found:
            unique, number = f"{label}-{number}", number + 1
        found.append(unique)
    return found


def _name_of(request: Request, jobs: Sequence[JobConfig]) -> str:
    """What is compared, the day, and the fingerprint of the comparison, by which a later day finds the same sweep
    again: it is the same however long, by how many workers and under what budget the comparison is made."""
    asked = [*request.fixed, *(f"{key}={value}" for key, values in request.axes.items() for value in values)]
    asked += [str(override.input_line) for override in request.searched]
    fingerprint = hashlib.sha256(json.dumps(sorted(asked)).encode()).hexdigest()[:8]
    if begun := [folder.name for folder in sweep_folders() if folder.name.endswith(f"-{fingerprint}")]:
        return begun[-1]
    words = [*_few([job.task.name for job in jobs], 1), *_few([job.model.name for job in jobs], 1)]
    words += _few([job.method.name for job in jobs], METHODS_IN_NAME)
    return _as_folder("-".join([*words, f"{datetime.now():%Y-%m-%d}", fingerprint]))


def _few(names: Iterable[str], most: int) -> list[str]:
    """Each once, and how many more there are."""
    unique = list(dict.fromkeys(names))
    return [*unique[:most], *([f"{len(unique) - most}-more"] if len(unique) > most else [])]


def _as_folder(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-")


def save_spec(spec: SweepSpec) -> None:
    """Write sweep.json whole or not at all."""
    text = json.dumps({"schema_version": SPEC_SCHEMA, **asdict(spec)}, indent=2)
    # The storage's address may hold a password, which workers need.
    write_whole(spec.path / SWEEP_FILE, text, mode=0o600 if spec.settings.storage else None)


def load_spec(folder: Path) -> SweepSpec:
    """Read sweep.json. Raises DataError: the folder is no sweep's, or a newer peftsweep wrote it."""
    try:
        content = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        rule = f"a sweep's folder must hold a readable {SWEEP_FILE} ({type(error).__name__})"
        raise DataError(Problem(rule, str(folder), fix="Sweeps lie under outputs/sweeps.")) from None
    if content.pop("schema_version", SPEC_SCHEMA + 1) > SPEC_SCHEMA:
        raise DataError(Problem("this peftsweep is too old for the sweep", str(folder), fix="Upgrade peftsweep."))
    content["studies"] = tuple(_read_study(study) for study in content["studies"])
    nested = {"budget": BudgetConfig, "sampler": SamplerConfig, "pruner": PrunerConfig, "confirm": ConfirmConfig}
    settings = content["settings"]
    content["settings"] = SweepConfig(**(settings | {key: kind(**settings[key]) for key, kind in nested.items()}))
    content["arguments"] = tuple(content["arguments"])
    # The folder may have been moved, or be seen under another path from another machine.
    return SweepSpec(**(content | {"folder": str(folder.absolute())}))


def _read_study(content: dict[str, Any]) -> StudySpec:
    spaces = {key: read_space(content[key]) for key in ("space", "asked_space")}
    return StudySpec(**(content | spaces | {"overrides": tuple(content["overrides"])}))


def with_parents(spec: SweepSpec, run_ids: Mapping[str, str]) -> SweepSpec:
    """The specification, knowing the MLflow run of each study."""
    studies = tuple(dataclasses.replace(study, parent_run_id=run_ids.get(study.name)) for study in spec.studies)
    return dataclasses.replace(spec, studies=studies)


def with_space(spec: SweepSpec, label: str, space: Space) -> SweepSpec:
    studies = tuple(dataclasses.replace(s, space=space) if s.label == label else s for s in spec.studies)
    return dataclasses.replace(spec, studies=studies)


def trial_limits(constraint: str | None) -> tuple[Limit, ...]:
    """Several are separated by commas. Raises ConfigError for what is no limit, or is none of a trial's metrics."""
    limits = parse_limits([constraint], "constraint") if constraint else ()
    for limit in limits:
        if all(key.startswith(NOT_OF_A_TRIAL) for key in candidates(limit.name)):
            rule = "a constraint must be on what a trial measures, and a trial reads no test data"
            fix = f"Limit memory, time, forgetting or valid/loss; afterwards, `peftsweep recommend '{limit.text}'`."
            raise ConfigError(Problem(rule, limit.text, "constraint", fix))
    return limits


def check_looks(looks: Sequence[int]) -> None:
    """Raises ConfigError for looks that do not rise, or begin with a single seed."""
    if not looks or looks[0] < 2 or any(later <= look for look, later in itertools.pairwise(looks)):
        rule = "looks must be rising numbers of seeds, from 2 up: a single seed shows nothing of a method"
        raise ConfigError(Problem(rule, list(looks), "confirm.looks", "For example: confirm.looks=[3,5,7,10,14]."))
