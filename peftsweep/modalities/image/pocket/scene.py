"""Scenes of the miniature's drawn world, and their words.

A scene and one of its captions:

    toy = Toy("round", "red", "square", "blue", "long", "striped", "white")
    Scene(toy, "grass", "night", "next to", Thing("star", "pink"))
    "a toy with a red round body and long ears next to a pink star on grass at night"
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BODY_FORMS = ("round", "square", "pointed")
HEAD_FORMS = ("round", "square", "pointed")
EARS = ("no", "round", "long", "pointed")
BELLIES = ("plain", "spotted", "striped", "starry")
PLACES = {
    "white": "on a white ground",
    "grey": "on a grey ground",
    "blue": "on a blue ground",
    "pink": "on a pink ground",
    "grass": "on grass",
    "sand": "on sand",
    "water": "on water",
    "sky": "in the starry sky",
    "checks": "on a checkered floor",
    "bricks": "on a brick wall",
}
TIMES = {"day": "", "night": "at night", "sunset": "at sunset"}
_LEADS = ("", "", "a picture of ", "there is ")


@dataclass(frozen=True)
class Toy:
    """A figure by its seven traits: the class that varies much, and that the concept belongs to."""

    body_form: str
    body_colour: str
    head_form: str
    head_colour: str
    ears: str
    belly: str
    belly_colour: str


@dataclass(frozen=True)
class Thing:
    """A single form of one colour."""

    form: str
    colour: str
    size: str = ""


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one subject, or a subject and its relation to another thing."""

    subject: Thing | Toy
    ground: str
    light: str = "day"
    relation: str = ""
    other: Thing | None = None


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of many ways to put a scene into words; it may say less than can be seen, but nothing else."""
    subject = describe_toy(scene.subject, rng) if isinstance(scene.subject, Toy) else describe(scene.subject)
    words, place, order = subject + relation_words(scene), place_words(scene), rng.random()
    if order < 0.08:
        return words
    if order < 0.2:
        return f"{place}, {words}"
    return f"{rng.choice(_LEADS)}{words} {place}"


def describe(thing: Thing) -> str:
    words = " ".join(word for word in (thing.size, thing.colour, thing.form) if word)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe_toy(toy: Toy, rng: np.random.Generator) -> str:
    """A toy by none to three of its parts, body and head with or without their form."""
    body, head = (f"{form} " if rng.random() < 0.6 else "" for form in (toy.body_form, toy.head_form))
    parts = (
        describe(Thing(f"{body}body", toy.body_colour)),
        describe(Thing(f"{head}head", toy.head_colour)),
        f"{toy.ears} ears",
        "a plain belly" if toy.belly == "plain" else describe(Thing(f"{toy.belly} belly", toy.belly_colour)),
    )
    chosen = sorted(rng.choice(4, size=int(rng.integers(4)), replace=False, p=(0.4, 0.25, 0.15, 0.2)))
    *first, last = [parts[i] for i in chosen] or [""]
    return f"a toy with {' and '.join(filter(None, (', '.join(first), last)))}" if last else "a toy"


def relation_words(scene: Scene) -> str:
    return f" {scene.relation} {describe(scene.other)}" if scene.other else ""


def place_words(scene: Scene) -> str:
    return f"{PLACES[scene.ground]} {TIMES[scene.light]}".strip()
