"""What a verdict says, in words: the same in a report, on its page, in a recommendation, and at the end of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from peftsweep.records.metrics import METRICS
from peftsweep.records.quantities import NARROW_SPACE, Quantity, counted, joined, quantity, some
from peftsweep.statistics.collapse import collapse_rate_limit
from peftsweep.statistics.sequential import Bound, Kind, Verdict

MOST_NAMES = 3  # in a headline; more are counted
MOST_TOLD = 6  # differences, in one sentence


@dataclass(frozen=True)
class Answer:
    """headline: which method, or which of them, in one sentence; details: how sure, and what else decides."""

    headline: str
    details: tuple[str, ...] = ()


def describe_verdict(verdict: Verdict, score: str, looks: Sequence[int] = ()) -> Answer:
    """score: key of METRICS. looks: numbers of seeds at which a sweep judges; none: judged once."""
    details = [_differences(verdict, score), _judged(verdict, score, looks), *_collapsed(verdict)]
    return Answer(_headline(verdict, score), tuple(filter(None, details)))


def _headline(verdict: Verdict, score: str) -> str:
    name, leader = quantity(score).name, verdict.leader
    rivals, behind = verdict.contenders[1:], [name for name in verdict.bounds if name in verdict.dropped]
    if leader is None:
        first = min(verdict.wanted.values())
        return f"Not judged yet: that takes {counted(first, 'seed')} of each of {_names(list(verdict.contenders))}."
    if verdict.kind is not Kind.OPEN and not any(bound.difference for bound in verdict.bounds.values()):
        return f"No winner: {some(list(verdict.contenders))} all have the same {name}."
    are_behind = f"{_names(behind)} {'is' if len(behind) == 1 else 'are'} behind" if behind else ""
    side = "highest" if METRICS[score].higher_is_better else "lowest"
    has_best = f"{leader} has the {side} {name}"
    told = f"{_names(rivals)} {'is' if len(rivals) == 1 else 'are'} not told apart from it"
    if verdict.kind is Kind.BEST:
        others = behind[0] if len(behind) == 1 else f"all {len(behind)} others"
        return f"{leader} is best: its {name} is ahead of {others} beyond chance."
    if verdict.kind is Kind.EQUAL:
        within = gap_text(score, verdict.margin)
        told = f"{leader} is within {within} of the best; as good: {_names(rivals)}."
        return f"{told} {are_behind}." if behind else told
    if verdict.kind is Kind.UNDECIDED:
        return f"Undecided: {has_best}, but {told}{'; ' * bool(behind)}{are_behind}."
    doubt = f", but {told}" if rivals else ", and no claim is made on so few seeds"
    upcoming = f"{counted(max(verdict.wanted.values()), 'seed')} of {_names(list(verdict.wanted))}"
    return f"Not decided yet: {has_best}{doubt}{'; ' * bool(behind)}{are_behind}. Next look: {upcoming}."


def _names(names: Sequence[str]) -> str:
    return joined(names) if len(names) <= MOST_NAMES else f"{len(names)} others"


def gap_text(score: str, value: float) -> str:
    """A difference of two scores, or a margin: 2 points; 0.02 where the score is no share."""
    number = f"{value / quantity(score).divisor:.2g}"
    return number if quantity(score).unit != "%" else f"{number} {'point' if number == '1' else 'points'}"


def _differences(verdict: Verdict, score: str) -> str:
    """How far behind the leader the contenders are; of a winner, the one that comes nearest."""
    bounds = verdict.bounds
    nearest = sorted(bounds, key=lambda name: bounds[name].difference)
    told = verdict.contenders[1:] or nearest[:1]
    if verdict.leader is None or not any(bounds[name].difference for name in told):
        return ""
    shown = quantity(score, [bounds[name].difference for name in told])
    shown = replace(shown, unit="points") if shown.unit == "%" else shown
    texts = [f"{name} by {_with_interval(bounds[name], shown)}" for name in told[:MOST_TOLD]]
    more = f" and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    return f"Behind {verdict.leader} (95% interval): {', '.join(texts)}{more}.".replace(NARROW_SPACE, " ")


def _with_interval(bound: Bound, shown: Quantity) -> str:
    return f"{shown.text(bound.difference)} ({shown.number(bound.low)} to {shown.number(bound.high)})"


def _judged(verdict: Verdict, score: str, looks: Sequence[int]) -> str:
    """At how many seeds the question was asked, with which margin, and who was behind at which."""
    if verdict.leader is None:
        return ""
    if len(looks) < 2:
        rule = "best is what has p < 0.05 against every other; behind, after Holm's correction"
        return f"Judged once, with a margin of {gap_text(score, verdict.margin)}: {rule}."
    out: dict[int, list[str]] = {}
    for name, look in verdict.dropped.items():
        out.setdefault(look, []).append(name)
    asked = joined(str(look) for look in looks if look <= verdict.look)
    dropped = ", ".join(f"{_names(names)} after {look}" for look, names in sorted(out.items()))
    told = f"Judged at {asked} seeds, with a margin of {gap_text(score, verdict.margin)}"
    told += f" and 5% of false claims shared out among {len(looks)} looks"
    return f"{told}; behind: {dropped}." if dropped else f"{told}."


def _collapsed(verdict: Verdict) -> Iterator[str]:
    """What was seen of seeds that collapse, and how many may, unseen."""
    if verdict.leader is None:
        return
    if verdict.collapsed:
        told = ", ".join(f"{name} {count}" for name, count in verdict.collapsed.items())
        yield f"Seeds that collapsed, which lost more than half of the score: {told}."
    calm = [name for name in verdict.contenders if name not in verdict.collapsed]
    if calm and verdict.kind is not Kind.OPEN:  # all of them have as many seeds as the look
        limit = f"at most {collapse_rate_limit(verdict.look):.0%} of seeds do"
        many = f"{len(calm)} others" if verdict.collapsed else f"All {len(calm)}"
        who = joined(calm) if len(calm) <= MOST_NAMES else many
        yield f"{who}: none of {verdict.look} seeds collapsed, so {limit} (95% confidence)."
