"""Scenes of a few people, and what can be said of them: what the embedded encoder is taught.

    Mia has a red cat. Omar lives near the lake. Ruth gives a kite to Omar on Monday.

Pre-training says again, in other words, what a scene tells ("The cat of Mia is red. Omar gets a kite from Ruth on
Monday."), with some words hidden or exchanged, which the model must find; now and then it is said of another scene, and
the model tells so. So it knows which words say the same. That anybody asks what is wrong with a claim, it never sees:
fine-tuning teaches that. A wrong claim differs from what is told in one word, and no claim tells by its own words alone
what it is. Everything follows from a `random.Random`; no text comes from elsewhere.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

from peftsweep.modalities.text_world import DAYS, NAMES, THINGS, WORDS, make_passage, split_of

PEOPLE = NAMES["she"] + NAMES["he"]
ANIMALS, COLOURS, PLACES, HOLDERS = WORDS["animals"], WORDS["colours"], WORDS["places"], WORDS["holders"]
GIFTS = [thing.rstrip("s") for thing in THINGS if thing[0] not in "aeiou"]
WORDS_OF = {  # by slot
    "colour": COLOURS,
    "animal": ANIMALS,
    "place": PLACES,
    "number": [str(number) for number in range(2, 10)],
    "things": THINGS,
    "holder": HOLDERS,
    "gift": GIFTS,
    "day": DAYS,
}
OTHER_SCENE = 0.15  # share of what is said in the pre-training
WRONG = {  # by label: the slots of which one word is wrong
    "wrong detail": ("colour", "number"),
    "wrong place": ("place", "holder", "day"),
    "wrong thing": ("animal", "things", "gift"),
}
CLAIMS = ("told", "not told", *WRONG)
# What a sentence says of its slots, how a scene tells it, and how it is said again.
Slots = dict[str, str]


@dataclass(frozen=True)
class Kind:
    told: tuple[str, ...]
    again: tuple[str, ...]
    slots: tuple[str, ...]  # beside the people


KINDS = {
    "pet": Kind(
        ("{name} has a {colour} {animal}.", "A {colour} {animal} is with {name}."),
        ("The {animal} of {name} is {colour}.", "It is {name} who has the {colour} {animal}."),
        ("colour", "animal"),
    ),
    "home": Kind(
        ("{name} lives near the {place}.", "Near the {place} is the house of {name}."),
        ("The {place} is near the house of {name}.", "It is near the {place} that {name} lives."),
        ("place",),
    ),
    "store": Kind(
        ("{name} keeps {number} {things} in a {holder}.", "In the {holder} of {name} there are {number} {things}."),
        ("The {holder} of {name} holds {number} {things}.", "The {things} of {name} are {number}, in a {holder}."),
        ("number", "things", "holder"),
    ),
    "gift": Kind(
        ("{name} gives a {gift} to {taker} on {day}.", "On {day} {taker} gets a {gift} from {name}."),
        ("The {gift} that {taker} gets is from {name}.", "On {day} a {gift} goes from {name} to {taker}."),
        ("gift", "day"),
    ),
}


@dataclass(frozen=True)
class Fact:
    """One sentence of a scene."""

    kind: str
    slots: Slots
    form: int

    @property
    def told(self) -> str:
        return KINDS[self.kind].told[self.form].format(**self.slots)


@dataclass(frozen=True)
class Scene:
    facts: tuple[Fact, ...]

    @property
    def text(self) -> str:
        return " ".join(fact.told for fact in self.facts)


def make_scene(rng: random.Random) -> Scene:
    """Two people, and three things that are told of them."""
    names = rng.sample(PEOPLE, 2)
    return Scene(
        tuple(
            Fact(kind, _slots(rng, kind, rng.choice(names), names), rng.randrange(2))
            for kind in rng.sample(list(KINDS), 3)
        )
    )


def _slots(rng: random.Random, kind: str, name: str, names: list[str]) -> Slots:
    taker = next(other for other in names if other != name)
    return {"name": name, "taker": taker} | {slot: rng.choice(WORDS_OF[slot]) for slot in KINDS[kind].slots}


def restated(rng: random.Random, fact: Fact) -> str:
    return rng.choice(KINDS[fact.kind].again).format(**fact.slots)


def pretraining_rows(seed: int, *, passages: bool) -> Iterator[tuple[str, str, bool]]:
    """Endless (text, pair, whether they belong together): a scene, and what is said of it again, or of another one.
    passages: after a general passage, or two of them alone. Scenes are those of the training split."""
    rng = random.Random(f"encoder-{seed}-{passages}")
    while True:
        before = [make_passage(rng)] if passages else []
        if passages and rng.random() < 0.5:
            yield " ".join([*before, make_passage(rng)]), "", False
            continue
        scene, other = make_scene(rng), make_scene(rng)
        if all(split_of(one.text) == "train" for one in (scene, other)):
            together = rng.random() >= OTHER_SCENE
            facts = (scene if together else other).facts
            again = [restated(rng, fact) for fact in rng.sample(facts, len(facts))]
            yield " ".join([*before, scene.text]), " ".join(again), together


def make_claims(split: str, count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """`count` different (scene, claim, one of CLAIMS) of a split, as many of each class as can be."""
    rng = random.Random(f"claims-{split}-{seed}")
    found: dict[tuple[str, str], str] = {}
    while len(found) < count:
        scene, label = make_scene(rng), CLAIMS[len(found) % len(CLAIMS)]
        claim = make_claim(rng, scene, label)
        if claim is not None and split_of(scene.text) == split:
            found.setdefault((scene.text, claim), label)
    return [(text, claim, label) for (text, claim), label in found.items()]


def make_claim(rng: random.Random, scene: Scene, label: str) -> str | None:
    """What is said of a scene: as it tells, of something else, or with one wrong word.

    None where a sentence has no word that could be wrong in this way.
    """
    fact = rng.choice(scene.facts)
    form, slots = rng.choice(KINDS[fact.kind].again), dict(fact.slots)
    if label == "not told":
        untold = next(kind for kind in KINDS if kind not in {one.kind for one in scene.facts})
        form = rng.choice(KINDS[untold].again)
        slots = _slots(rng, untold, fact.slots["name"], [fact.slots["name"], fact.slots["taker"]])
    elif label in WRONG and _make_wrong(rng, fact, form, slots, label) is None:
        return None
    return form.format(**slots)


def _make_wrong(rng: random.Random, fact: Fact, form: str, slots: Slots, how: str) -> str | None:
    """Exchange one word of `slots` for another of its kind, and answer its slot; None where the sentence has no word
    that could be wrong in this way. how: a key of WRONG."""
    may = [slot for slot in KINDS[fact.kind].slots if slot in WRONG[how] and f"{{{slot}}}" in form]
    if not may:
        return None
    wrong = rng.choice(may)
    slots[wrong] = rng.choice([word for word in WORDS_OF[wrong] if word != slots[wrong]])
    return wrong


def make_tagged(split: str, count: int, seed: int = 0) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """`count` different (words, tags) of a split: a scene, what is said of it again, and which words of that are wrong
    and how: B-DETAIL, B-PLACE, B-THING; all others are O."""
    rng = random.Random(f"tags-{split}-{seed}")
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    while len(found) < count:
        scene = make_scene(rng)
        if split_of(scene.text) != split:
            continue
        told = _words(scene.text)
        pairs = [(word, "O") for word in told]
        for fact in rng.sample(scene.facts, 2):
            pairs += _retold(rng, fact, rng.choice([None, *WRONG]))
        words, tags = zip(*pairs, strict=True)
        found.setdefault(words, tags)
    return list(found.items())


def _retold(rng: random.Random, fact: Fact, how: str | None) -> list[tuple[str, str]]:
    """Words of what is said again, with tags; how: the kind of wrong word, if the sentence has a place for one."""
    form, slots = rng.choice(KINDS[fact.kind].again), dict(fact.slots)
    wrong = _make_wrong(rng, fact, form, slots, how) if how else None
    pairs = []
    for text, slot, _, _ in string.Formatter().parse(form):
        pairs += [(word, "O") for word in _words(text)]
        if slot is not None:
            pairs.append((slots[slot], f"B-{str(how).split()[-1].upper()}" if slot == wrong else "O"))
    return pairs


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)
