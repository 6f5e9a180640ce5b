"""Which confirm jobs are due: best settings with fresh seeds, look by look, until it is known which study is best.

All follows from the jobs that ended: a sweep that was killed goes on with the same looks, and runs no seed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftsweep.records.space import are_near, defaults_of
from peftsweep.statistics.intervals import Floats
from peftsweep.statistics.sequential import Verdict, judge, margin_of
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec
from peftsweep.sweeps.protocol.trials import Ending, Terms, Trial


@dataclass(frozen=True)
class Contender:
    """A study whose best settings are confirmed.

    tuned, jobs: its trials and its confirm jobs, each by the last attempt. scores: (seeds, test items) of the best
    settings, in the order of `fresh_seeds`, as far as they ended without a gap.
    """

    study: StudySpec
    best: Trial
    tuned: Sequence[Trial]
    jobs: Sequence[Trial]
    scores: Floats

    @property
    def rivals(self) -> tuple[str, str, int, int]:
        """What must be the same for studies to be compared."""
        return self.study.task, self.study.model, self.study.max_steps, self.study.step_rows

    @property
    def is_near_collapse(self) -> bool:
        """Whether a trial diverged with settings close to the best."""
        diverged = [trial for trial in self.tuned if trial.outcome and trial.outcome.ending is Ending.DIVERGED]
        return any(are_near(self.study.space, trial.params, self.best.params) for trial in diverged)

    @property
    def is_out(self) -> bool:
        """Whether a confirm job of the best settings failed for good, or ran out of memory: what is left is too few."""
        mine = [job for job in self.jobs if job.terms.params == self.best.params and job.is_finished]
        endings = {job.outcome.ending for job in mine if job.outcome}
        return not endings <= {Ending.FINISHED, Ending.DIVERGED}


def fresh_seeds(spec: SweepSpec, count: int) -> list[int]:
    """Seeds that no study of the sweep was tuned with."""
    last = max(study.seed for study in spec.studies)
    return [(last + 1 + index) % 2**32 for index in range(count)]


def verdicts(spec: SweepSpec, contenders: Sequence[Contender]) -> list[Verdict]:
    """One for each set of two or more rivals, all of which have had the seeds of the first look; none on one seed."""
    found: list[Verdict] = []
    first = min(spec.looks, default=0)
    for key in dict.fromkeys(contender.rivals for contender in contenders):
        rivals = [one for one in contenders if one.rivals == key and not one.is_out]
        if first > 1 and len(rivals) > 1 and all(len(one.scores) >= first for one in rivals):
            scores = {one.study.label: one.scores for one in rivals}
            margin = margin_of(scores.values(), first) if spec.margin is None else spec.margin
            is_known = any(one.is_near_collapse for one in rivals)
            found.append(judge(scores, margin=margin, looks=spec.looks, is_collapse_known=is_known))
    return found


def confirm_jobs_due(spec: SweepSpec, contenders: Sequence[Contender]) -> list[tuple[StudySpec, Terms]]:
    """What the next look needs and was not made before: the best settings of those that are not out, and the published
    default with the first of the seeds."""
    wanted = dict.fromkeys((one.study.label for one in contenders), min(spec.looks, default=0))
    for verdict in verdicts(spec, contenders):
        wanted |= verdict.wanted
    due: list[tuple[StudySpec, Terms]] = []
    for contender in contenders:
        study, best, default = contender.study, contender.best.params, defaults_of(contender.study.space)
        terms = [Terms("best", best, seed) for seed in fresh_seeds(spec, wanted[study.label])]
        if default and best != default:
            terms += [Terms("default", default, seed) for seed in fresh_seeds(spec, spec.default_seeds)]
        made = [(job.terms.params, job.terms.seed) for job in contender.jobs]
        due += [(study, found) for found in terms if (found.params, found.seed) not in made]
    return due
