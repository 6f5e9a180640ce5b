"""What a comparison says, in sentences: the answer, how sure it is, how the numbers were made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from peftsweep.records.jobs import REFERENCE
from peftsweep.records.metrics import METRICS
from peftsweep.records.quantities import NARROW_SPACE, SAYS_NOTHING, Quantity, counted, joined, quantity, some
from peftsweep.records.results import Stage
from peftsweep.report.analysis.comparison import Estimate, Group, Row
from peftsweep.report.analysis.costs import cheapest
from peftsweep.report.analysis.judging import LOSS
from peftsweep.report.analysis.verdict import MOST_NAMES, Answer, describe_verdict, gap_text
from peftsweep.statistics.pairs import LEVEL, is_best
from peftsweep.statistics.sequential import Kind


def answer(group: Group) -> Answer:
    """What to take from the ranking of one group."""
    found = _ranking(group)
    names = [row.name for row in group.rows if row.is_above_base is False]
    of_base = (f"Not shown to be better than {base_text(group)}: {some(names)}.",) if names else ()
    return replace(found, details=(*found.details, *of_base))


def base_text(group: Group) -> str:
    """The model before training, with its score where that is known."""
    if group.score_name is None or group.base_score is None:
        return "the base model"
    shown = quantity(group.score_name, [group.base_score])
    return f"the base model ({shown.name} {shown.text(group.base_score)})".replace(NARROW_SPACE, " ")


def _ranking(group: Group) -> Answer:
    ranked = [row for row in group.rows if row.place is not None and row.score]
    if not ranked or group.score_name is None:
        return _unscored(group)
    best = ranked[0]
    shown = quantity(group.score_name, [row.score.mean for row in ranked if row.score])
    score = f"{best.name}: {shown.name} {describe_estimate(best.score, shown)}, {counted(len(best.seeds), 'seed')}."
    if len(ranked) == 1:
        return Answer(f"Only {best.name} was scored, so there is nothing to compare it with.", (score,))
    unjudged = [row for row in ranked[: len(ranked) - group.untested] if not _is_judged(group, row)]
    if group.verdict is None or best in unjudged:
        return _unjudged(group, ranked, shown, score)
    found = describe_verdict(group.verdict, group.score_name, group.looks)
    headline = found.headline
    if group.untested:
        headline += f" Only the {len(ranked) - group.untested} best of {len(ranked):,} rows were compared."
    details = [score, *found.details, *_detectable(group, best), *_by_loss(group)]
    if unjudged:
        details.append(f"Not judged with them: {_names(unjudged)}. For that it takes 2 seeds on the same test items.")
    equals = [row for row in ranked if row.is_equal]
    if len(equals) > 1 and (found_cost := cheapest(equals, group.key.stage)):
        details.append(f"Among the equally good, {found_cost.sentence}")
    return Answer(headline, tuple(details))


def _is_judged(group: Group, row: Row) -> bool:
    verdict = group.verdict
    return verdict is not None and (row.name in verdict.bounds or row.name in verdict.contenders)


def _unjudged(group: Group, ranked: Sequence[Row], shown: Quantity, score: str) -> Answer:
    """Of a single seed no method is called best: what is compared then are adapters."""
    best, others = ranked[0], ranked[1:]
    side = "highest" if METRICS[shown.key].higher_is_better else "lowest"
    if len(best.seeds) > 1 or not group.pairs:
        return Answer(f"{best.name} has the {side} {shown.name}, but nothing tells how sure that is.", (score,))
    apart = [row for row in others if row.separated_from_best]
    alike = [row for row in others if row.separated_from_best is False]
    parts = [f"it is told apart from {_names(apart)}"] if apart else []
    parts += [f"{'' if apart else 'it is '}not told apart from {_names(alike)}"] if alike else []
    pairs = f"{joined(dict.fromkeys(pair.test for pair in group.pairs))}, Holm's correction"
    told = f"Of the adapters, {', '.join(parts)} ({pairs} over {counted(len(group.pairs), 'pair')})."
    headline = f"Not judged: {best.name} has the {side} {shown.name}, but of one seed nobody is called best."
    why = (
        "Of methods that are equal, a test of single seeds tells 13 to 45% of pairs apart. Run two more seeds or more."
    )
    return Answer(headline, (score, *([told] if parts else []), why))


def _names(rows: Sequence[Row]) -> str:
    return joined(row.name for row in rows) if len(rows) <= MOST_NAMES else f"{len(rows)} others"


def _detectable(group: Group, best: Row) -> Iterator[str]:
    """Of the nearest row that was not told apart: the gap that these seeds could have shown."""
    near = next((row for row in group.rows if row.separated_from_best is False and row.name != best.name), None)
    names = {best.name, near.name if near else ""}
    pair = next((pair for pair in group.pairs if {pair.first, pair.second} == names), None)
    is_undecided = group.verdict is not None and group.verdict.kind is Kind.UNDECIDED
    if is_undecided and near and pair and pair.detectable is not None and group.score_name:
        gap = gap_text(group.score_name, pair.detectable)
        yield f"A true gap of {gap} between {best.name} and {near.name} would have been found 4 times in 5."


def _by_loss(group: Group) -> Iterator[str]:
    """The test loss as a second endpoint: often steadier from seed to seed than a score, and it may rank otherwise."""
    losses = {
        row.name: row.estimates[LOSS].mean
        for row in group.rows
        if any(row.name in (pair.first, pair.second) for pair in group.loss_pairs)
    }
    if len(losses) < 2 or group.verdict is None:
        return
    first, *others = sorted(losses, key=lambda name: losses[name])
    shown = quantity(LOSS, losses.values())
    told = ", ".join(f"{name} {shown.number(losses[name])}" for name in (first, *others))
    worst = max(pair.p_value for pair in group.loss_pairs if first in (pair.first, pair.second))
    is_told = is_best(first, others, group.loss_pairs)
    p_value = "p < 0.001" if worst < 0.001 else f"p = {worst:.3f}" if worst < LEVEL else f"p = {worst:.2f}"
    apart = "told apart" if is_told else "not told apart"
    yield f"By {shown.name}, a second measure: {told}; {apart}{' at best' * (len(others) > 1)} ({p_value})."
    if first != group.verdict.leader:
        doubt = ": the two disagree, and the score decides" if is_told else ", though not beyond chance"
        yield f"The loss ranks {first} before {group.verdict.leader}{doubt}."


def describe_estimate(estimate: Estimate | None, shown: Quantity) -> str:
    """A mean with its interval: 72.9% (95% interval 68.0 to 77.9%)."""
    if estimate is None:
        return ""
    if estimate.low is None or estimate.high is None:
        return shown.text(estimate.mean)
    if shown.tells_nothing(estimate.low, estimate.high):
        return f"{shown.text(estimate.mean)} (the 95% interval {SAYS_NOTHING})"
    low, high = shown.number(estimate.low), shown.text(estimate.high)
    return f"{shown.text(estimate.mean)} (95% interval {low} to {high})"


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
    if group.verdict:
        told.append(
            "Intervals are 95%: of scores over fresh seeds and test items, of costs over seeds. A method is best if "
            f"each other one is behind it (two-sided p < {LEVEL} over all looks), and as good as the best if the "
            "intervals of all differences among those not behind lie within the margin; else it is not told apart."
        )
    if len(group.looks) > 1:
        told.append(
            "In simulated sweeps such a verdict was wrong in less than 1% of cases, in 6% where a rival collapses in a "
            "tenth of its seeds, and in 39% where the best does: a collapse that no seed showed can't be known."
        )
    if any(row.estimates for row in group.rows):
        told.append("Costs are means over the same jobs; times depend on what else ran on the machine.")
    return told


def _tuning(group: Group) -> Iterator[str]:
    counts = sorted({sum(row.trials.values()) for row in group.rows if row.trials})
    if not counts:
        yield "Nothing was tuned here: every job ran with the settings that it was given."
        return
    trials = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    steps = f" of at most {group.key.max_steps:,} optimizer steps" if group.key.max_steps else ""
    yield f"Each method was tuned with {trials} trials{steps}, every trial in the method's own search space."
    knobs = {len(row.best) for row in group.rows if row.trials}
    if len(knobs) > 1:
        yield (
            "At equal trials a method with two settings is searched less closely than one with a single one: in "
            "simulations it lost up to 1% of its loss by that at 8 to 10 trials, 4% at 6."
        )
    objective = quantity(group.objective).name if group.objective else "the objective"
    yield f"Trials were judged by {objective} on held-out data, and poor ones ended early; test data were not read."


def _scoring(group: Group) -> Iterator[str]:
    counts = sorted({len(row.seeds) for row in group.rows if row.place is not None})
    if not counts or group.score_name is None:
        return
    seeds = counted(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    score = quantity(group.score_name).name
    if group.key.stage != Stage.CONFIRM:
        yield f"Each row is the mean over its jobs, {seeds} each, judged on the test data: {score}."
        return
    asked = [look for look in group.looks if group.verdict and look <= group.verdict.look]
    is_once = len(asked) < 2 and all(row.settings_judged == 1 for row in group.rows)
    when = "once on the test data" if is_once else f"on the test data at {joined(map(str, asked))} seeds"
    when = when if is_once or asked else "on the test data, more than once"
    yield f"The best settings were then trained again with {seeds} each, and judged {when}: {score}."


def interval_text(estimate: Estimate, shown: Quantity) -> str:
    """`36.0 to 100.0`; in words where it tells nothing; empty where there is none, or nothing between its ends."""
    if estimate.low is None or estimate.high is None:
        return ""
    if shown.tells_nothing(estimate.low, estimate.high):
        return SAYS_NOTHING
    low, high = shown.number(estimate.low), shown.number(estimate.high)
    return "" if low == high else f"{low}{NARROW_SPACE}to{NARROW_SPACE}{high}"
