"""Which confirm jobs are due, look by look."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftsweep.config.schema import ConfirmConfig, SweepConfig
from peftsweep.records.space import CAPACITY, LR, defaults_of
from peftsweep.statistics.sequential import Kind
from peftsweep.sweeps.protocol.confirmation import Contender, confirm_jobs_due, fresh_seeds, verdicts
from peftsweep.sweeps.protocol.specification import SweepSpec
from peftsweep.sweeps.protocol.trials import Ending, Terms, Trial
from tests.unit.sweeps.conftest import make_spec, make_study

MakeTrial = Callable[..., Trial]

BEST = {LR: 1e-3, CAPACITY: 8}
ITEMS = 300


@pytest.fixture
def spec(tmp_path: Path) -> SweepSpec:
    return make_spec(tmp_path, "lora", "oft")


def confirming(spec: SweepSpec, **settings: Any) -> SweepSpec:
    return replace(spec, settings=SweepConfig(n_trials=4, confirm=ConfirmConfig(**settings)))


class Sweep:
    """The studies of a sweep whose confirm jobs have ended with these scores, seed by seed."""

    def __init__(self, spec: SweepSpec, trial: MakeTrial, scores: dict[str, Sequence[float]]) -> None:
        self.spec, self.trial = spec, trial
        self.scores = {study.label: list(scores.get(study.label, ())) for study in spec.studies}
        self.made: dict[str, list[Trial]] = {study.label: [] for study in spec.studies}

    def contenders(self, **changes: Any) -> list[Contender]:
        rng = np.random.default_rng(0)
        found = []
        for study in self.spec.studies:
            chances = np.array(self.scores[study.label]).reshape(-1, 1)
            scores = (rng.random((len(chances), ITEMS)) < chances).astype(float)
            best = self.trial(1, Ending.FINISHED, value=0.1, params=BEST)
            found.append(Contender(study, best, [best], self.made[study.label], scores))
        return [replace(one, **changes) for one in found]

    def due(self) -> list[tuple[str, str, int | None]]:
        return [(s.label, terms.role, terms.seed) for s, terms in confirm_jobs_due(self.spec, self.contenders())]

    def run(self, truth: dict[str, float]) -> list[int]:
        """Run what is due until nothing is; the numbers of jobs of the best settings that each look took."""
        looks = []
        while due := confirm_jobs_due(self.spec, self.contenders()):
            for study, terms in due:
                job = self.trial(len(self.made[study.label]), Ending.FINISHED, terms=terms)
                self.made[study.label].append(job)
                if terms.role == "best":
                    self.scores[study.label].append(truth[study.label])
            looks.append(sum(terms.role == "best" for _, terms in due))
        return looks


def test_the_first_look_runs_the_best_settings_and_the_default_with_the_same_seeds(
    spec: SweepSpec, trial: MakeTrial
) -> None:
    seeds = fresh_seeds(spec, 3)
    wanted = [(s, role, seed) for s in ("lora", "oft") for role in ("best", "default") for seed in seeds]
    assert Sweep(spec, trial, {}).due() == wanted
    (_, first), *_ = confirm_jobs_due(spec, Sweep(spec, trial, {}).contenders())
    assert first.params == BEST


def test_a_default_that_is_best_is_confirmed_once(spec: SweepSpec, trial: MakeTrial) -> None:
    default = trial(0, Ending.FINISHED, value=0.1, params=defaults_of(spec.studies[0].space))
    due = confirm_jobs_due(spec, Sweep(spec, trial, {}).contenders(best=default))
    assert {terms.role for _, terms in due} == {"best"}


def test_a_job_that_was_made_before_is_not_made_again(spec: SweepSpec, trial: MakeTrial) -> None:
    sweep = Sweep(spec, trial, {})
    first, *others = sweep.due()
    sweep.made["lora"] = [trial(0, Ending.FINISHED, terms=Terms("best", BEST, first[2]))]
    assert sweep.due() == others


def test_nobody_confirms_with_a_seed_that_another_study_was_tuned_with(tmp_path: Path) -> None:
    studies = tuple(make_study(f"lora-seed-{seed}", seed=seed) for seed in (0, 1, 2))
    spec = replace(make_spec(tmp_path), studies=studies)
    assert set(fresh_seeds(spec, 5)).isdisjoint({0, 1, 2})


def test_a_clear_winner_takes_no_more_seeds_than_it_must(spec: SweepSpec, trial: MakeTrial) -> None:
    sweep = Sweep(spec, trial, {})
    looks = sweep.run({"lora": 0.9, "oft": 0.5})
    (verdict,) = verdicts(spec, sweep.contenders())
    assert (verdict.kind, verdict.leader) == (Kind.BEST, "lora")
    assert len(sweep.scores["oft"]) == 3
    assert sum(looks) < 2 * 14


def test_every_seed_is_run_once(spec: SweepSpec, trial: MakeTrial) -> None:
    sweep = Sweep(spec, trial, {})
    sweep.run({"lora": 0.8, "oft": 0.8})
    for jobs in sweep.made.values():
        asked = [(job.terms.role, job.terms.seed) for job in jobs]
        assert len(set(asked)) == len(asked)


def test_alike_methods_are_equal_or_undecided_but_none_is_best(spec: SweepSpec, trial: MakeTrial) -> None:
    sweep = Sweep(spec, trial, {})
    sweep.run({"lora": 0.8, "oft": 0.8})
    (verdict,) = verdicts(spec, sweep.contenders())
    assert verdict.kind in (Kind.EQUAL, Kind.UNDECIDED)


def test_studies_of_other_tasks_are_no_rivals(spec: SweepSpec, trial: MakeTrial) -> None:
    lora, oft = spec.studies
    apart = replace(spec, studies=(lora, replace(oft, task="sft")))
    sweep = Sweep(apart, trial, {})
    assert sweep.run({"lora": 0.9, "oft": 0.5}) == [6]
    assert verdicts(apart, sweep.contenders()) == []


def test_a_lone_study_has_the_seeds_of_the_first_look(tmp_path: Path, trial: MakeTrial) -> None:
    assert Sweep(make_spec(tmp_path), trial, {}).run({"lora": 0.9}) == [3]


def test_a_study_whose_confirm_job_failed_is_left_out_and_holds_nobody_up(spec: SweepSpec, trial: MakeTrial) -> None:
    three = replace(spec, studies=(*spec.studies, make_study("ia3")))
    sweep = Sweep(three, trial, {"lora": [0.9] * 3, "oft": [0.9] * 3, "ia3": [0.5]})
    for label in ("lora", "oft", "ia3"):
        seeds = fresh_seeds(three, 3)
        endings = [Ending.FINISHED, Ending.REFUSED if label == "ia3" else Ending.FINISHED, Ending.FINISHED]
        jobs = [
            trial(i, end, terms=Terms("best", BEST, seed))
            for i, (end, seed) in enumerate(zip(endings, seeds, strict=True))
        ]
        sweep.made[label] = jobs
    (verdict,) = verdicts(three, sweep.contenders())
    assert "ia3" not in (*verdict.contenders, *verdict.dropped)


def test_looks_replayed_on_all_seeds_come_to_the_verdict_that_was_reached(spec: SweepSpec, trial: MakeTrial) -> None:
    """What a controller decides that takes over after the last job must be what the one before it decided."""
    sweep = Sweep(spec, trial, {})
    sweep.run({"lora": 0.85, "oft": 0.8})
    reached = verdicts(spec, sweep.contenders())
    assert confirm_jobs_due(spec, sweep.contenders()) == []
    assert verdicts(spec, sweep.contenders()) == reached


@pytest.mark.parametrize(
    ("settings", "looks"),
    [
        ({}, (3, 5, 7, 10, 14)),
        ({"seeds": 4}, (3, 4)),
        ({"seeds": 1}, (1,)),
        ({"seeds": 0}, ()),
        ({"rule": "fixed"}, (3,)),
        ({"rule": "fixed", "seeds": 5}, (5,)),
        ({"rule": "fixed", "seeds": 0}, ()),
        ({"looks": [2, 6]}, (2, 6)),
    ],
)
def test_looks_are_those_asked_for_up_to_the_most_seeds(
    spec: SweepSpec, settings: dict[str, Any], looks: tuple[int, ...]
) -> None:
    assert confirming(spec, **settings).looks == looks


def test_a_fixed_number_of_seeds_is_one_look(spec: SweepSpec, trial: MakeTrial) -> None:
    sweep = Sweep(confirming(spec, rule="fixed", seeds=4, default_seeds=0), trial, {})
    assert sweep.run({"lora": 0.8, "oft": 0.8}) == [8]


def test_one_seed_each_comes_to_no_verdict(spec: SweepSpec, trial: MakeTrial) -> None:
    sweep = Sweep(confirming(spec, seeds=1), trial, {})
    assert sweep.run({"lora": 0.99, "oft": 0.1}) == [2]
    assert verdicts(sweep.spec, sweep.contenders()) == []


def test_a_trial_that_diverged_beside_the_best_settings_is_a_warning(spec: SweepSpec, trial: MakeTrial) -> None:
    contender = Sweep(spec, trial, {}).contenders()[0]
    for factor, is_near in ((1.5, True), (10.0, False)):
        diverged = trial(2, Ending.DIVERGED, params=BEST | {LR: factor * BEST[LR]})
        assert replace(contender, tuned=[diverged]).is_near_collapse is is_near


def test_a_difference_within_the_margin_that_was_asked_for_is_equality(spec: SweepSpec, trial: MakeTrial) -> None:
    kinds = []
    for margin in ("0%", "30%"):
        sweep = Sweep(confirming(spec, margin=margin), trial, {})
        sweep.run({"lora": 0.8, "oft": 0.8})
        kinds += [verdict.kind for verdict in verdicts(sweep.spec, sweep.contenders())]
    assert kinds == [Kind.UNDECIDED, Kind.EQUAL]


def test_seeds_of_the_looks_are_prefixes_of_one_another(spec: SweepSpec) -> None:
    sets = [fresh_seeds(spec, look) for look in spec.looks]
    assert all(later[: len(first)] == first for first, later in itertools.pairwise(sets))
