"""What an answer about a picture is worth.

target 14, generated "14.5"     exact_match 0, relaxed_accuracy 1 (within 5%), anls 0
target "Green", "green."        all 1
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from peftsweep.modalities.text.judging import Judgement, Judging
from peftsweep.modalities.text.rows import Row
from peftsweep.modalities.text.sft import Scorer, load_scorer, score_by, scorer_key
from peftsweep.modalities.vision_language.settings import VqaConfig

VERSION = 1
TOLERANCE = 0.05  # of relaxed accuracy, as a share of the target
LEAST_LIKENESS = 0.5  # below it ANLS is 0


def plain(text: str) -> str:
    """Without white space around it, a full stop after it, and capitals."""
    return " ".join(text.split()).removesuffix(".").casefold()


def exact_match(generated: str, target: str) -> float:
    return float(plain(generated) == plain(target))


def relaxed_accuracy(generated: str, target: str) -> float:
    """Numbers within 5%, anything else exactly; a percentage is a hundredth. ChartQA, Masry et al. 2022."""
    found, told = _as_number(generated), _as_number(target)
    if found is None or not told:  # of a target 0 no share can be taken
        return exact_match(generated, target)
    return float(abs(found - told) <= TOLERANCE * abs(told))


def _as_number(text: str) -> float | None:
    plainly = plain(text).replace(",", "")
    try:
        return float(plainly.removesuffix("%")) / (100 if plainly.endswith("%") else 1)
    except ValueError:
        return None


def anls(generated: str, target: str) -> float:
    """1 less the share of letters that differ, or 0 where more than half do. Biten et al. 2019."""
    one, other = plain(generated), plain(target)
    likeness = 1 - edit_distance(one, other) / max(len(one), len(other), 1)
    return likeness if likeness >= LEAST_LIKENESS else 0.0


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's: the fewest letters to put in, take out or change."""
    before = list(range(len(other) + 1))
    for row, letter in enumerate(one, start=1):
        now = [row]
        for column, theirs in enumerate(other, start=1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (letter != theirs)))
        before = now
    return before[-1]


MEASURES: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "relaxed_accuracy": relaxed_accuracy,
    "anls": anls,
}


def build_judging(config: VqaConfig) -> Judging:
    """Raises ConfigError where the user's scorer can't be loaded."""
    score = "score" if config.scorer else config.judge
    key = f"{config.judge} {scorer_key(config.scorer)}"
    return Judging(partial(_judge, config.judge, load_scorer(config.scorer)), key, VERSION, score)


def _judge(measure: str, scorer: Scorer | None, row: Row, generated: str) -> Judgement:
    """The scorer's value first, where there is one."""
    values = {measure: MEASURES[measure](generated, row.response)}
    if scorer is not None:
        values = {"score": score_by(scorer, row, generated)} | values
    return Judgement(generated.strip(), values)
