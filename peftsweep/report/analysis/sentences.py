"""What a comparison says, in sentences: the answer, how sure it is, how the numbers were made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from peftsweep.records.jobs import REFERENCE
from peftsweep.records.metrics import METRICS, Direction, candidates
from peftsweep.records.quantities import NARROW_SPACE, Quantity, counted, joined, quantity
from peftsweep.records.results import Stage
from peftsweep.report.analysis.comparison import Estimate, Group, Row
from peftsweep.statistics.pairs import Pair

COSTS = (("memory", "Memory", "needs the least memory"), ("time", "Training time", "trains fastest"))
MOST_NAMES, MOST_SAME = 3, 12  # in a headline; more are counted


@dataclass(frozen=True)
class Answer:
    """headline: which method, or which tie, in one sentence; details: how sure, and what else decides."""

    headline: str
    details: tuple[str, ...] = ()


def answer(group: Group) -> Answer:
    """What to take from the ranking of one group."""
    ranked = [row for row in group.rows if row.place is not None and row.score]
    if not ranked or group.score_name is None:
        return _unscored(group)
    best = ranked[0]
    shown = quantity(group.score_name, [row.score.mean for row in ranked if row.score])
    score = f"{best.name}: {shown.name} {describe_estimate(best.score, shown)}, {counted(len(best.seeds), 'seed')}."
    if len(ranked) == 1:
        return Answer(f"Only {best.name} was scored, so there is nothing to compare it with.", (score,))
    compared = ranked[1 : len(ranked) - group.untested]
    tied = [row for row in compared if row.separated_from_best is False]
    unknown = [row for row in compared if row.separated_from_best is None]
    behind = [row for row in compared if row.separated_from_best]
    details = [score]
    if len(tied) > MOST_NAMES:
        details.append(f"Not told apart from {best.name}: {joined(row.name for row in tied)}.")
    if group.pairs:
        tests, pairs = joined(dict.fromkeys(pair.test for pair in group.pairs)), counted(len(group.pairs), "pair")
        details.append(f"Compared on the same test items: {tests}, Holm's correction over {pairs}, level 5%.")
    details += [*_needed(group, best, tied), *_cheapest([best, *tied])]
    headline = _headline(shown, best, tied, unknown, behind)
    if group.untested and not unknown:
        headline += f" Only the {len(compared) + 1} best of {len(ranked):,} rows were compared."
    return Answer(headline, tuple(details))


def _headline(shown: Quantity, best: Row, tied: Sequence[Row], unknown: Sequence[Row], behind: Sequence[Row]) -> str:
    side = "highest" if METRICS[shown.key].direction is Direction.HIGHER else "lowest"
    if unknown:
        return f"{best.name} has the {side} {shown.name}, but nothing tells how sure that is."
    same = [row for row in tied if row.score and best.score and row.score.mean == best.score.mean]
    if same and not behind and len(same) == len(tied):
        names = joined(row.name for row in (best, *tied)) if len(tied) <= MOST_SAME else f"the first {len(tied) + 1}"
        return f"No winner: {names} all have the same {shown.name}."
    if not tied:
        others = _names(behind) if len(behind) == 1 else f"all {len(behind)} others"
        return f"{best.name} is best: its {shown.name} is ahead of {others} beyond chance."
    told = f"No clear winner: {best.name} has the {side} {shown.name}, but {_names(tied)} can't be told apart from it"
    return f"{told}; {_names(behind)} {'is' if len(behind) == 1 else 'are'} behind." if behind else f"{told}."


def _names(rows: Sequence[Row]) -> str:
    return joined(row.name for row in rows) if len(rows) <= MOST_NAMES else f"{len(rows)} others"


def describe_estimate(estimate: Estimate | None, shown: Quantity) -> str:
    """A mean with its interval: 72.9% (95% interval 68.0 to 77.9%)."""
    if estimate is None:
        return ""
    if estimate.low is None or estimate.high is None:
        return shown.text(estimate.mean)
    low, high = shown.number(estimate.low), shown.text(estimate.high)
    return f"{shown.text(estimate.mean)} (95% interval {low} to {high})"


def _needed(group: Group, best: Row, tied: Sequence[Row]) -> Iterator[str]:
    """What would have told the best from the runner-up."""
    if tied:
        wanted = {best.name, tied[0].name}
        pair = next((pair for pair in group.pairs if {pair.first, pair.second} == wanted), None)
        if pair and pair.difference and pair.detectable is not None and group.score_name:
            names = f"{best.name} and {tied[0].name}"
            yield f"{names} would be told apart 4 times in 5 if they were {detectable(pair, group.score_name)} apart."


def detectable(pair: Pair, score: str) -> str:
    """The smallest gap of two rows that would have been found, with its unit."""
    gap = pair.detectable or 0.0
    return quantity(score, [gap]).as_difference.text(gap).replace(NARROW_SPACE, " ")


def _cheapest(rows: Sequence[Row]) -> Iterator[str]:
    """In a tie, costs decide, as far as the seeds agree on them."""
    if len(rows) < 2:
        return
    for word, noun, verb in COSTS:
        if key := next((key for key in candidates(word) if all(key in row.estimates for row in rows)), None):
            first, *rest = sorted(rows, key=lambda row: row.estimates[key].mean)
            shown = quantity(key, [row.estimates[key].mean for row in rows])
            least, most = (shown.text(row.estimates[key].mean) for row in (first, rest[-1]))
            if least == most:
                continue
            high, low = first.estimates[key].high, rest[-1].estimates[key].low
            if high is not None and low is not None and high >= low:  # single measurements have no interval
                told = f"{least} ({first.name}) to {most} ({rest[-1].name})"
                yield f"{noun} does not decide: {told} on average, but their 95% intervals overlap."
            else:
                yield f"Among these, {first.name} {verb}: {least}; {rest[-1].name}: {most}."


def _unscored(group: Group) -> Answer:
    own = [row for row in group.rows if row.origin != REFERENCE]
    if not own:
        return Answer("Published results only: nothing here was run by you, so nothing is ranked.")
    measured = [row for row in own if row.objective is not None]
    if not measured or group.objective is None:
        return Answer("No method was scored on test data, so none can be recommended.")
    shown = quantity(group.objective, [row.objective for row in measured if row.objective is not None])
    first = measured[0]
    assert first.objective is not None
    told = (
        f"By {shown.name}, {first.name} is ahead ({shown.text(first.objective)}), but its settings were chosen by it."
    )
    return Answer("No method was scored on test data yet, so none can be recommended.", (told,))


def protocol(group: Group) -> list[str]:
    """How the numbers of a group were made, in a few sentences."""
    told = [*_tuning(group), *_scoring(group)]
    if group.pairs:
        told.append(
            "Intervals are 95%: of scores over fresh seeds and test items, of costs over seeds. Few seeds that "
            "disagree make them wide. Two methods are told apart if their difference on the same items has p < 0.05 "
            "after Holm's correction, and are a tie otherwise."
        )
    if any(row.estimates for row in group.rows):
        told.append("Costs are means over the same jobs; training time counts optimisation steps alone.")
    return told


def _tuning(group: Group) -> Iterator[str]:
    counts = sorted({sum(row.trials.values()) for row in group.rows if row.trials})
    if not counts:
        yield "Nothing was tuned here: every job ran with the settings that it was given."
        return
    trials = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    steps = f" of at most {group.key.max_steps:,} optimizer steps" if group.key.max_steps else ""
    yield f"Each method was tuned with {trials} trials{steps}, every trial in the method's own search space."
    objective = quantity(group.objective).name if group.objective else "the objective"
    yield f"Trials were judged by {objective} on held-out data, and poor ones ended early; test data were not read."


def _scoring(group: Group) -> Iterator[str]:
    counts = sorted({len(row.seeds) for row in group.rows if row.place is not None})
    if not counts or group.score_name is None:
        return
    seeds = counted(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    score = quantity(group.score_name).name
    if group.key.stage == Stage.CONFIRM:
        yield f"The best settings were then trained again with {seeds} each, and judged once on the test data: {score}."
    else:
        yield f"Each row is the mean over its jobs, {seeds} each, judged on the test data: {score}."


def interval_text(estimate: Estimate, shown: Quantity) -> str:
    """`36.0 to 100.0`; empty where there is none, or nothing between its ends."""
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = shown.number(estimate.low), shown.number(estimate.high)
    return "" if low == high else f"{low}{NARROW_SPACE}to{NARROW_SPACE}{high}"
