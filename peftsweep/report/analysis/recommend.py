"""Which method to use under one's own limits, and why the better-scoring ones were left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftsweep.errors import ConfigError, DataError, Problem, did_you_mean
from peftsweep.records.jobs import OWN
from peftsweep.records.limits import Limit
from peftsweep.records.metrics import METRICS, candidates, resolve, sign
from peftsweep.records.quantities import NARROW_SPACE, format_metric, joined, quantity
from peftsweep.report.analysis.comparison import Comparison, Group, Row
from peftsweep.report.analysis.costs import Cheapest, cheapest
from peftsweep.report.analysis.sentences import base_text, describe_estimate
from peftsweep.report.analysis.verdict import gap_text

# What a user may ask of a method -> its key among the capabilities, and how its lack is told.
NEEDS = {
    "mergeable": ("mergeable", "can't be merged into the base model"),
    "lora-convertible": ("convertible_to_lora", "can't be converted to LoRA"),
    "quantized": ("quantized_base", "can't be trained on a quantized base"),
    "shardable": ("shardable", "can't be trained where several devices hold a model in parts"),
}
FAR = 1e9  # further off than any limit: who is no better than the base is not the nearest either
# Method -> what it can do, by the keys above; None or absent: not known.
Capabilities = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True)
class Wish:
    """What a recommendation is to keep to, and what it is to be best in (a word or key of METRICS)."""

    limits: tuple[Limit, ...] = ()
    best_in: str = "score"
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exclusion:
    """A row that does not keep to everything. reasons: clauses; distance: how far it is off, 0 is not at all."""

    name: str
    value: float
    reasons: tuple[str, ...]
    distance: float


@dataclass(frozen=True)
class Recommendation:
    """For one group. chosen: the best that fits, of equally good ones the cheapest; job: the location of its job to
    take; as_good: the others of these; unknown: what else fits and was not told apart from it; excluded: what scores
    better and does not fit, best first; nearest: where nothing fits, what comes closest. text: all of it in words."""

    group: str
    metric: str
    chosen: str | None
    as_good: tuple[str, ...]
    unknown: tuple[str, ...]
    excluded: tuple[Exclusion, ...]
    nearest: Exclusion | None
    text: str
    job: str | None = None
    has_adapter: bool = True


def build_wish(limits: tuple[Limit, ...], maximize: str | None, minimize: str | None, needs: Iterable[str]) -> Wish:
    """Raises ConfigError: an unknown metric or need, both ways asked for, or the worse side of a metric."""
    if maximize and minimize:
        rule = "only one metric can be best; the other may be a limit"
        raise ConfigError(Problem(rule, f"maximize={maximize} minimize={minimize}"))
    word = maximize or minimize or "score"
    better, worse = ("maximize", "minimize") if sign(candidates(word)[0]) > 0 else ("minimize", "maximize")
    if {"maximize": maximize, "minimize": minimize}[worse]:
        rule = f"of {word}, {METRICS[candidates(word)[0]].direction}"
        raise ConfigError(Problem(rule, f"{worse}={word}", fix=f"Use {better}={word}."))
    for need in needs:
        if need not in NEEDS:
            raise ConfigError(Problem("no such need is known", need, "needs", did_you_mean(need, list(NEEDS))))
    return Wish(limits, word, tuple(needs))


def recommend(comparison: Comparison, wish: Wish, capabilities: Capabilities | None = None) -> list[Recommendation]:
    """One recommendation for each group with rows of one's own.

    capabilities: asked only for what `wish.needs`.

    Raises:
        ConfigError: a limit names an unknown metric.
        DataError: no row was measured in what is to be best, or in what is limited.
    """
    groups = [group for group in comparison.groups if any(row.place is not None for row in group.rows)]
    if not groups:
        rule = "a recommendation needs jobs that were scored on test data"
        fix = " ".join([*comparison.warnings, *_unconfirmed(comparison)])
        raise DataError(Problem(rule, comparison.source, fix=fix))
    return [_recommend(group, wish, capabilities or (lambda method: {})) for group in groups]


def _unconfirmed(comparison: Comparison) -> Iterator[str]:
    """Of what was tuned and has no confirm job."""
    names = [row.name for group in comparison.groups for row in group.rows if row.trials and row.place is None]
    if names:
        yield f"Tuned, but not confirmed: {joined(names)}. Run the sweep to its end, without confirm.seeds=0."


def _recommend(group: Group, wish: Wish, capabilities: Capabilities) -> Recommendation:
    ranked = [row for row in group.rows if row.place is not None and row.origin == OWN]
    measured = [row.estimates.keys() for row in ranked]
    metric = resolve(wish.best_in, measured)
    limits = [(limit, resolve(limit.name, measured)) for limit in wish.limits]
    rows = [row for row in ranked if metric in row.estimates]
    rows.sort(key=lambda row: -sign(metric) * _mean(row, metric))
    found = {row.name: _exclusion(row, metric, limits, wish.needs, capabilities) for row in rows}
    fit = [row for row in rows if not found[row.name].reasons]
    if all(row.is_above_base is False for row in rows):
        text = f"Nobody is recommended: no method is shown to be better than {base_text(group)}."
        return Recommendation(group.title, metric, None, (), (), tuple(found.values()), None, text)
    if not fit:
        nearest = min(found.values(), key=lambda exclusion: exclusion.distance)
        text = (
            f"No method keeps to all of it. The nearest is {nearest.name} ({quantity(metric).name} "
            f"{_shown(metric, nearest.value)}): it {' and '.join(nearest.reasons)}."
        )
        return Recommendation(group.title, metric, None, (), (), tuple(found.values()), nearest, text)
    best = fit[0]
    # By the verdict where there is one; of other metrics, equal means only.
    equal = [row for row in fit if row.is_equal] if best.is_equal and metric == group.score_name else []
    found_cost = cheapest(equal, group.key.stage) if len(equal) > 1 else None
    chosen = found_cost.row if found_cost else best
    same = [row.name for row in fit if _mean(row, metric) == _mean(best, metric)]
    alike = _not_told_apart(best, fit) if metric == group.score_name else same
    as_good = tuple(row.name for row in equal if row.name != chosen.name)
    unknown = tuple(row.name for row in fit if row.name in alike and row.name not in (best.name, chosen.name, *as_good))
    excluded = tuple(found[row.name] for row in rows[: rows.index(best)])
    lines = [*_alike(group, metric, as_good, unknown, found_cost), *_left_out(excluded, metric)]
    text = "\n".join([_use(chosen, metric), *lines, *_doubts(chosen, limits), *_base_unknown(group)])
    return Recommendation(
        group.title, metric, chosen.name, as_good, unknown, excluded, None, text, chosen.job, chosen.has_adapter
    )


def _not_told_apart(best: Row, fit: Sequence[Row]) -> list[str]:
    """Of the best of the group, what the verdict says; of another one that is the best that fits, the pairs."""
    if best.place == 1:
        return [row.name for row in fit if row.separated_from_best is False]
    return list(best.not_separated_from)


def _mean(row: Row, key: str) -> float:
    return row.estimates[key].mean


def _exclusion(
    row: Row, metric: str, limits: Sequence[tuple[Limit, str]], needs: Sequence[str], capabilities: Capabilities
) -> Exclusion:
    broken: list[tuple[str, float]] = []
    for limit, key in limits:
        if key not in row.estimates:
            broken.append((f"has no measured {limit.name}", 1.0))
        elif (violation := limit.violation(_mean(row, key))) > 0:
            side = "above" if limit.at_most else "below"
            reason = f"has {limit.name} {_shown(key, _mean(row, key))}, {side} {_shown(key, limit.bound)}"
            broken.append((reason, violation))
    if row.is_above_base is False:
        broken.append(("is not better than the base model", FAR))
    able = capabilities(row.method) if needs else {}
    for need in needs:
        key, lack = NEEDS[need]
        if not able.get(key):
            broken.append((lack if able.get(key) is False else f"is not known to be {need}", 1.0))
    reasons = tuple(reason for reason, _ in broken)
    return Exclusion(row.name, _mean(row, metric), reasons, sum(distance for _, distance in broken))


def _shown(key: str, value: float) -> str:
    return format_metric(METRICS[key], value)


def _use(row: Row, metric: str) -> str:
    shown = quantity(metric, [_mean(row, metric)])
    score = f"{shown.name} {describe_estimate(row.estimates[metric], shown)}".replace(NARROW_SPACE, " ")
    settings = ", ".join(f"{key}={value}" for key, value in row.best.items() if value is not None) or "its own settings"
    return f"Use {row.name}: {score}, with {settings}."


def _alike(
    group: Group, metric: str, as_good: Sequence[str], unknown: Sequence[str], found_cost: Cheapest | None
) -> Iterator[str]:
    """Cost decides among the equally good. Of what is merely not told apart, nothing is known."""
    if as_good and group.verdict:
        within = gap_text(metric, group.verdict.margin)
        decides = found_cost.sentence if found_cost else "neither memory nor time tells them apart."
        yield f"As good, all within {within} of the best: {joined(as_good)}. Among them, {decides}"
    if unknown and metric == group.score_name:
        yield f"Not told apart from it, so not known to be worse, better or as good: {joined(unknown)}."
    elif unknown:
        yield f"The same {quantity(metric).name}: {joined(unknown)}."


def _left_out(excluded: Sequence[Exclusion], metric: str) -> Iterator[str]:
    for each in excluded:
        yield f"{each.name} ({_shown(metric, each.value)}) was left out: it {' and '.join(each.reasons)}."


def _base_unknown(group: Group) -> Iterator[str]:
    if group.score_name and group.base_score is None:
        yield "Nobody knows whether it is better than the base model: no job scored that (task.base_score=true)."


def _doubts(row: Row, limits: Sequence[tuple[Limit, str]]) -> Iterator[str]:
    for limit, key in limits:
        end = row.estimates[key].high if limit.at_most else row.estimates[key].low
        if end is not None and limit.violation(end) > 0:
            yield f"A close call: its {limit.name} may be {_shown(key, end)} (end of the 95% interval)."
    if len(row.seeds) == 1:
        yield "One seed only: another one may turn this around."
