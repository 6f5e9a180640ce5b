"""The miniature's world of words: arithmetic stories that a model of three million parameters can learn.

One problem, in the form that fine-tuning teaches:

    Question: Mia has 4 bags with 6 shells in each bag. She gives 7 shells to Omar. How many shells does Mia have now?
    Answer: Mia starts with 4 * 6 = 24 shells. Then there are 24 - 7 = 17 shells. The answer is: 17

and the same problem as pre-training tells it, in other words:

    Mia had 4 bags with 6 shells in each bag, 4 * 6 = 24. She gave 7 shells to Omar, 24 - 7 = 17. In the end there were
    17 shells.

So the base model knows the words, the arithmetic and how to follow a story, but not the form of an answer, as a real
base model does. Everything follows from a `random.Random`; no text comes from elsewhere.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
NAMES: dict[str, list[str]] = WORDS["names"]  # by pronoun
THINGS, HOLDERS, DAYS = WORDS["things"], WORDS["holders"], WORDS["days"]
GAINS, LOSSES, QUESTIONS = WORDS["gains"], WORDS["losses"], WORDS["questions"]
LARGEST = 99  # every number in a story stays below a hundred
TRAIN_SHARE, VALID_SHARE = 0.8, 0.1  # the rest is test


@dataclass(frozen=True)
class Problem:
    """One story in its tellings; `answer` is the number that all of them end with."""

    query: str
    response: str
    answer: int
    story: str
    worked: str
    retold: str


@dataclass(frozen=True)
class Step:
    """One equation of a story: how the question, the answer and two tellings of the pre-training put it.

    A text may be empty, and may hold {equation} beside the story's own words.
    """

    asked: str
    answered: str
    told: str
    retold: str
    left: int
    sign: str
    right: int

    @property
    def result(self) -> int:
        return {"+": self.left + self.right, "-": self.left - self.right, "*": self.left * self.right}[self.sign]

    @property
    def equation(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}"


class Opening(NamedTuple):
    """The first sentence of a story in the same four forms."""

    asked: str
    answered: str
    told: str
    retold: str


def make_problem(rng: random.Random) -> Problem:
    """A story of one to three equations."""
    pronoun = rng.choice(["she", "he"])
    name = rng.choice(NAMES[pronoun])
    friend = rng.choice([n for n in NAMES["she"] + NAMES["he"] if n != name])
    words = {"name": name, "friend": friend, "Pronoun": pronoun.title(), "things": rng.choice(THINGS)}
    return _compare(rng, words) if rng.random() < 0.25 else _chain(rng, words)


def _chain(rng: random.Random, words: dict[str, str]) -> Problem:
    opening, steps, count = _open_with_groups(rng, words) if rng.random() < 0.45 else _open_with_count(rng, words)
    for _ in range(rng.randint(1, 2)):
        steps.append(_change(rng, words, count))
        count = steps[-1].result
    return _tell(words, opening, steps, rng.choice(QUESTIONS))


def _open_with_count(rng: random.Random, words: dict[str, str]) -> tuple[Opening, list[Step], int]:
    count = rng.randint(3, 60)
    name, things = words["name"], words["things"]
    answered = f"{name} starts with {count} {things}."
    opening = Opening(
        f"{name} has {count} {things}.", answered, f"{name} had {count} {things}.", f"{name} had {count}."
    )
    return opening, [], count


def _open_with_groups(rng: random.Random, words: dict[str, str]) -> tuple[Opening, list[Step], int]:
    groups, each, holder = rng.randint(2, 9), rng.randint(2, 9), rng.choice(HOLDERS)
    holders = holder + ("es" if holder == "box" else "s")
    content = f"{groups} {holders} with {each} {words['things']} in each {holder}"
    step = Step("", "{name} starts with {equation} {things}.", "", "{name} had {equation} {things}.", groups, "*", each)
    opening = Opening(f"{words['name']} has {content}.", "", f"{words['name']} had {content}, {step.equation}.", "")
    return opening, [step], step.result


def _change(rng: random.Random, words: dict[str, str], count: int) -> Step:
    gain = count < 4 or (rng.random() < 0.5 and count <= LARGEST - 3)
    amount = rng.randint(2, min(40, LARGEST - count)) if gain else rng.randint(2, count - 2)
    asked, told = (text.format(n=amount, **words) for text in rng.choice(GAINS if gain else LOSSES))
    return Step(
        f"{words['Pronoun']} {asked}.",
        "Then there are {equation} {things}.",
        f"{words['Pronoun']} {told}" + ", {equation}.",
        (f"Then came {amount} more" if gain else f"Then {amount} went away") + ", and {name} had {equation} {things}.",
        count,
        "+" if gain else "-",
        amount,
    )


def _compare(rng: random.Random, words: dict[str, str]) -> Problem:
    own = rng.randint(4, 24)
    kind = rng.choice(["more", "fewer", "times"])
    amount = {"more": rng.randint(2, 24), "fewer": rng.randint(2, own - 2), "times": rng.randint(2, 3)}[kind]
    relation = (
        f"{amount} times as many {words['things']} as" if kind == "times" else f"{amount} {kind} {words['things']} than"
    )
    sign = {"more": "+", "fewer": "-", "times": "*"}[kind]
    other = Step(
        f"{words['friend']} has {relation} {words['name']}.",
        "{friend} has {equation} {things}.",
        f"{words['friend']} had {relation} {words['name']}" + ", {equation}.",
        "{friend} had {equation} {things}.",
        own,
        sign,
        amount,
    )
    both = Step(
        "",
        "Together they have {equation} {things}.",
        "Together this is {equation}.",
        "Both had {equation} {things}.",
        own,
        "+",
        other.result,
    )
    first = f"{words['name']} had {own} {words['things']}."
    opening = Opening(f"{words['name']} has {own} {words['things']}.", "", first, "")
    return _tell(words, opening, [other, both], "How many {things} do they have together?")


def _tell(words: dict[str, str], opening: Opening, steps: list[Step], question: str) -> Problem:
    def joined(form: str) -> str:
        texts = [getattr(step, form).format(**words, equation=step.equation) for step in steps]
        return " ".join(text for text in [getattr(opening, form), *texts] if text)

    answer = steps[-1].result
    asked = f"{joined('asked')} {question.format(**words)}"
    return Problem(
        query=asked,
        response=f"{joined('answered')} The answer is: {answer}",
        answer=answer,
        story=f"{joined('told')} In the end there were {answer} {words['things']}.",
        worked=f"{asked} Working: {'; '.join(step.equation for step in steps)}. So {answer} {words['things']}.",
        retold=f"{asked} Let us see. {joined('retold')} That makes {answer} {words['things']}.",
    )


def split_of(query: str) -> str:
    """The split a question belongs to, by its own text: the same question is never in two splits."""
    share = int.from_bytes(hashlib.sha256(query.encode()).digest()[:4]) / 2**32
    return "train" if share < TRAIN_SHARE else "valid" if share < TRAIN_SHARE + VALID_SHARE else "test"


def make_problems(split: str, count: int, seed: int = 0) -> list[Problem]:
    """`count` different problems of one split: train, valid or test."""
    rng = random.Random(f"{split}-{seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = make_problem(rng)
        if split_of(problem.query) == split:
            found.setdefault(problem.query, problem)
    return list(found.values())


def make_passage(rng: random.Random) -> str:
    """A few sentences that are no problem: the general text on which forgetting is measured."""
    passage = rng.choice(WORDS["passages"])
    kinds = WORDS | NAMES | {"people": NAMES["she"] + NAMES["he"]}
    words: dict[str, str] = {}
    for slots, kind in passage["draws"].items():
        names = slots.split()
        if kind == "person":
            words["pronoun"] = rng.choice(["she", "he"])
            words["name"] = rng.choice(NAMES[words["pronoun"]])
        else:
            drawn = rng.sample(kinds[kind], len(names)) if len(names) > 1 else [rng.choice(kinds[kind])]
            words |= zip(names, drawn, strict=True)
    if "day" in words:
        words["tomorrow"] = DAYS[(DAYS.index(words["day"]) + 1) % len(DAYS)]
    return str(passage["text"].format(**words))


def make_fact(rng: random.Random) -> str:
    """A line of bare arithmetic."""
    sign = rng.choice("++--*")
    if sign == "*":
        left, right = rng.randint(2, 9) if rng.random() < 0.6 else rng.randint(2, 24), rng.randint(2, 9)
        left = left if left * right <= LARGEST else rng.randint(2, 9)
    elif sign == "+":
        left = rng.randint(2, LARGEST - 2)
        right = rng.randint(2, LARGEST - left)
    else:
        left = rng.randint(3, LARGEST)
        right = rng.randint(1, left - 1)
    return Step("", "", "", "", left, sign, right).equation


def pretraining_documents(seed: int) -> Iterator[str]:
    """An endless stream of general passages, facts, told stories and worked stories.

    Never a question in the form of the task, and never one of the validation or test split.
    """
    rng = random.Random(f"pretraining-{seed}")
    while True:
        kind = rng.random()
        if kind < 0.3:
            yield make_passage(rng)
        elif kind < 0.45:
            yield ". ".join(make_fact(rng) for _ in range(6)) + "."
        else:
            problem = make_problem(rng)
            if split_of(problem.query) == "train":
                yield problem.story if kind < 0.6 else problem.worked if kind < 0.75 else problem.retold


def general_passages(count: int) -> list[str]:
    """Held-out general text of the same kinds, for forgetting: passages, told stories and worked stories."""
    rng = random.Random("general")
    makers = (make_passage, make_passage, lambda r: make_problem(r).story, lambda r: make_problem(r).retold)
    return [makers[i % len(makers)](rng) for i in range(count)]
