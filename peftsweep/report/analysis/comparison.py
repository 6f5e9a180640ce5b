"""From jobs to a comparison: which methods may be ranked together, how they score, what they cost, how sure that is.

Plain data. The console table, the CSV, the page and `recommend` are all made of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peftsweep.statistics.pairs import Pair
from peftsweep.statistics.sequential import Verdict


@dataclass(frozen=True)
class Estimate:
    """A mean over the seeds' jobs, in the metric's own unit. low, high: its 95% interval, None where it has none (a
    single seed has one for its score alone)."""

    mean: float
    low: float | None
    high: float | None
    seeds: int  # jobs that measured it


@dataclass(frozen=True)
class Row:
    """One study, or one method with fixed settings: what a line of the table shows.

    name: unique in its group. place: 1 is best; None for what was not scored on test data, and for published results,
    which are shown beside one's own and never ranked. seeds, seed_scores, locations: of the jobs that count, one for
    each seed, locations as Job.location; a seed that diverged counts with the worst score. collapsed: seeds that lost
    most of what the best one scored. default_gain: score less the published settings', over the seeds that both have.
    best_seed: the one that did best on validation data, whose job is the one to take. has_adapter: False of full
    fine-tuning. is_above_base: better than the model before training, on the same test items (p < 0.05); None where
    that can't be told. settings_judged: how many settings of its study met the test data, the published ones aside.
    estimates: by key of METRICS. trials: ended, by status, of the tuning, each by its last attempt; empty where nothing
    was tuned. retried: attempts that another one replaced. separated_from_best: None where that can't be told.
    is_equal: shown to be as good as the best, within the margin.
    """

    name: str
    method: str
    model: str
    task: str
    origin: str  # own, reference
    study: str | None
    best: dict[str, Any]  # settings, by dotted key
    objective: float | None = None  # of its best trial
    score: Estimate | None = None
    default_score: Estimate | None = None  # of the method's published settings
    default_gain: Estimate | None = None
    seeds: tuple[int, ...] = ()
    seed_scores: tuple[float, ...] = ()
    diverged: tuple[int, ...] = ()  # seeds
    collapsed: tuple[int, ...] = ()  # seeds
    best_seed: int | None = None
    has_adapter: bool = True
    is_above_base: bool | None = None
    settings_judged: int = 1
    estimates: dict[str, Estimate] = field(default_factory=dict)
    trials: dict[str, int] = field(default_factory=dict)
    retried: int = 0
    tune_tokens: float | None = None  # training tokens of all trials
    tune_seconds: float | None = None
    causes: dict[str, int] = field(default_factory=dict)  # why jobs were not ok, as Failure.cause -> how many
    locations: tuple[str, ...] = ()
    place: int | None = None
    separated_from_best: bool | None = None
    is_equal: bool = False
    not_separated_from: tuple[str, ...] = ()  # names of rows
    warnings: tuple[str, ...] = ()  # sentences
    edges: tuple[str, ...] = ()  # sentences: best settings at an end of what was searched, and what to try

    @property
    def job(self) -> str | None:
        """Location of the job to take."""
        return None if self.best_seed is None else self.locations[self.seeds.index(self.best_seed)]


@dataclass(frozen=True)
class GroupKey:
    """What must be the same for rows to be ranked together. None: not known."""

    task: str
    task_version: int | None
    test_items: str | None  # fingerprint
    model: str
    model_revision: str | None
    stage: str  # confirm (tuned by a sweep) or single
    max_steps: int | None
    batch_rows: int | None  # rows of one optimizer step


@dataclass(frozen=True)
class Group:
    """Rows that may be ranked together, best first, and published rows of the same task and model after them.

    score_name: key of METRICS, None where nothing was scored on test data. warnings: sentences that must be seen
    beside the ranking. untested: how many of the ranked rows, the last of them, were compared with no other. verdict:
    over names of rows; None where no two rows have two seeds with the same test items. looks: numbers of seeds at which
    the sweep judged them; none where they are judged once, here. loss_pairs: of those that lead, by their test loss.
    base_score: of the model before training, on the same test items.
    """

    key: GroupKey
    title: str
    score_name: str | None
    objective: str | None
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...] = ()
    warnings: tuple[str, ...] = ()
    untested: int = 0
    verdict: Verdict | None = None
    looks: tuple[int, ...] = ()
    loss_pairs: tuple[Pair, ...] = ()
    base_score: float | None = None


@dataclass(frozen=True)
class Failure:
    """Jobs that were not ok for one cause. location: of one of them, as Job.location."""

    cause: str  # status and first line: `failed: no such layer`
    count: int
    methods: tuple[str, ...]
    location: str


@dataclass(frozen=True)
class Comparison:
    """Everything that a report tells. groups: the one with most rows first; failures: the most frequent first;
    unreadable: jobs that were left out."""

    source: str
    groups: tuple[Group, ...]
    failures: tuple[Failure, ...] = ()
    unreadable: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
