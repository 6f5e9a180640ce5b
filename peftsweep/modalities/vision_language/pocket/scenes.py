"""Pictures of a few things, and what can be said and asked of them: what the embedded model is taught.

    a red star at the top left, a blue ball in the middle and a green ring at the bottom right, on grass

Pre-training describes them, says what is true of them, and asks in one form, answering in whole sentences, in the end
with those that begin with the word that matters:

    User: Name the colour of the star.    Assistant: The star has the colour red.
    User: Name the colour of the star.    Assistant: red is the colour of the star.

The task asks in another, and wants a word:

    User: What colour is the star?        Assistant: red

So the base model sees colours, forms and places, but not what an answer looks like: fine-tuning teaches that. A word
that would fit a question is never more than one in two, or three, so who doesn't look answers a quarter at best.
Everything follows from a `random.Random`; no picture and no text comes from elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from peftsweep.modalities.image.pocket.drawing import COLOURS, FORMS, GROUNDS, Canvas, vary
from peftsweep.modalities.image.pocket.scene import PLACES, Thing, describe
from peftsweep.modalities.text_world import split_of

CELLS = 3  # columns, and rows, of the places where a thing can be
RADIUS, SHIFT = 0.14, 0.02  # of a thing, and how far it lies from the middle of its cell; shares of the picture's side
COUNTS = (2, 3, 4)
RELATIONS = ("left of", "right of", "above", "below")
KINDS = ("colour", "thing", "beside", "count", "exists")  # of questions
SENTENCE_SHARES, WORD_SHARES = (0.25, 0.15, 0.25, 0.15, 0.2), (0.3, 0.2, 0.25, 0.05, 0.2)  # of pre-training
# Whether a form and a colour belong together is what the model has not learnt: it leaves room above a good adapter.
ASKED_SHARES = (0.2, 0.2, 0.3, 0.1, 0.2)
DESCRIBE = "Tell what the picture shows."


@dataclass(frozen=True)
class Placed:
    """A thing in its cell; rows are counted downwards."""

    form: str
    colour: str
    column: int
    row: int

    @property
    def words(self) -> str:
        return describe(Thing(self.form, self.colour))

    @property
    def centre(self) -> tuple[float, float]:
        return (self.column + 0.5) / CELLS, (self.row + 0.5) / CELLS


@dataclass(frozen=True)
class Scene:
    """Things of different forms and colours, in reading order, on a ground."""

    things: tuple[Placed, ...]
    ground: str

    @property
    def text(self) -> str:
        """Its name: no two scenes have the same."""
        told = (f"{thing.words} at {thing.column} {thing.row}" for thing in self.things)
        return f"{', '.join(told)} {PLACES[self.ground]}"

    def only_ones(self) -> list[tuple[str, Placed, Placed]]:
        """(relation, thing, the only other thing that lies so of it), by columns or by rows alone."""
        each = [
            (relation, thing, [other for other in self.things if _lies(other, relation, thing)])
            for relation in RELATIONS
            for thing in self.things
        ]
        return [(relation, thing, others[0]) for relation, thing, others in each if len(others) == 1]


def _lies(other: Placed, relation: str, thing: Placed) -> bool:
    return {
        "left of": other.column < thing.column,
        "right of": other.column > thing.column,
        "above": other.row < thing.row,
        "below": other.row > thing.row,
    }[relation]


def make_scene(rng: random.Random) -> Scene:
    """Of four things that make a square none is the only one beside another: these are drawn again."""
    while not (scene := _drawn(rng)).only_ones():
        pass
    return scene


def _drawn(rng: random.Random) -> Scene:
    count = rng.choice(COUNTS)
    forms, colours = rng.sample(list(FORMS), count), rng.sample(list(COLOURS), count)
    cells = sorted(rng.sample(range(CELLS**2), count))
    things = (
        Placed(form, colour, cell % CELLS, cell // CELLS)
        for form, colour, cell in zip(forms, colours, cells, strict=True)
    )
    return Scene(tuple(things), rng.choice(list(GROUNDS)))


def scenes_of(split: str, seed: object = 0) -> Iterator[Scene]:
    """Endless scenes of a split; none is of two."""
    rng = random.Random(f"pictures-{split}-{seed}")
    while True:
        scene = make_scene(rng)
        if split_of(scene.text) == split:
            yield scene


def draw(scene: Scene, seed: int) -> np.ndarray:
    """A picture of a scene, uint8 (64, 64, 3); places, shades and brightness vary with the seed."""
    rng = np.random.default_rng(seed)
    colour, pattern = GROUNDS[scene.ground]
    canvas = Canvas(vary(colour, rng))
    if pattern:
        pattern(canvas, rng)
    for thing in scene.things:
        x, y = np.asarray(thing.centre) + rng.uniform(-SHIFT, SHIFT, 2)
        radius = RADIUS * rng.uniform(0.9, 1.05)
        FORMS[thing.form](canvas, (float(x), float(y)), float(radius), vary(COLOURS[thing.colour], rng))
    return canvas.pixels("day", rng.uniform(0.92, 1.08))


def caption(scene: Scene) -> str:
    """What pre-training answers to DESCRIBE."""
    *first, last = (thing.words for thing in scene.things)
    return f"There are {len(scene.things)} things {PLACES[scene.ground]}: {', '.join(first)} and {last}."


def statement(rng: random.Random, scene: Scene) -> str:
    """Something that is true."""
    one, other = rng.sample(scene.things, 2)
    true = [relation for relation in RELATIONS if _lies(one, relation, other)]
    if rng.random() < 0.3:
        return f"The {one.form} is {one.colour}."
    return f"The {one.form} is {rng.choice(true)} the {other.form}."


def said_and_asked(rng: random.Random, scene: Scene, *, word_first: bool = False) -> tuple[str, str]:
    """A turn of pre-training: what is asked for, and the whole sentence that answers. word_first: the word that the
    task would ask for begins it."""
    draws = rng.random()
    if draws < 0.2:
        return DESCRIBE, caption(scene)
    if draws < (0.25 if word_first else 0.35):
        return "Say something true.", f"{statement(rng, scene)} {statement(rng, scene)}"
    kind, thing = rng.choices(KINDS, WORD_SHARES if word_first else SENTENCE_SHARES)[0], rng.choice(scene.things)
    if kind == "colour":
        sentences = (
            f"The {thing.form} has the colour {thing.colour}.",
            f"{thing.colour} is the colour of the {thing.form}.",
        )
        return f"Name the colour of the {thing.form}.", sentences[word_first]
    if kind == "thing":
        sentences = f"In {thing.colour} the picture shows a {thing.form}.", f"{thing.form} in {thing.colour}."
        return f"Name the thing in {thing.colour}.", sentences[word_first]
    if kind == "beside":
        relation, thing, other = rng.choice(scene.only_ones())
        sentences = f"{relation.capitalize()} it lies a {other.form}.", f"{other.form} lies {relation} it."
        return f"Name a thing {relation} the {thing.form}.", sentences[word_first]
    if kind == "count":
        count = len(scene.things)
        return "Count the things.", (f"The picture shows {count} things.", f"{count} things can be seen.")[word_first]
    looked_for = _looked_for(rng, scene, is_there=rng.random() < 0.5)
    words = describe(looked_for)
    is_there = any((thing.form, thing.colour) == (looked_for.form, looked_for.colour) for thing in scene.things)
    seen = f"{words.capitalize()} can be seen." if is_there else f"No {words.split(' ', 1)[1]} can be seen."
    return f"Look for {words}.", f"{'yes' if is_there else 'no'}, {seen}" if word_first else seen


def question(rng: random.Random, scene: Scene, kind: str, *, is_there: bool) -> tuple[str, str]:
    """What the task asks of one of KINDS, and the word that answers. is_there: whether what may exist does."""
    thing = rng.choice(scene.things)
    if kind == "colour":
        return f"What colour is the {thing.form}?", thing.colour
    if kind == "thing":
        return f"What is {thing.colour}?", thing.form
    if kind == "beside":
        relation, thing, other = rng.choice(scene.only_ones())
        return f"What is {relation} the {thing.form}?", other.form
    if kind == "count":
        return "How many things are there?", str(len(scene.things))
    return f"Is there {describe(_looked_for(rng, scene, is_there=is_there))}?", "yes" if is_there else "no"


def _looked_for(rng: random.Random, scene: Scene, *, is_there: bool) -> Thing:
    """A thing of the scene, or else a form and a colour that are both there, but not together."""
    one, other = rng.sample(scene.things, 2)
    return Thing(one.form, one.colour if is_there else other.colour)


def make_questions(split: str, scenes: int, each: int) -> Iterator[tuple[int, Scene, str, str]]:
    """(number of the scene, scene, question, answer): `each` different questions of so many scenes of a split. Of those
    that ask whether something is there, every other one is answered by yes."""
    rng, asked_for = random.Random(f"questions-{split}"), 0
    seen: set[str] = set()
    source = scenes_of(split, "task")
    for number in range(scenes):
        scene = next(found for found in source if found.text not in seen)
        seen.add(scene.text)
        asked: set[str] = set()
        while len(asked) < each:
            kind = rng.choices(KINDS, ASKED_SHARES)[0]
            text, answer = question(rng, scene, kind, is_there=asked_for % 2 == 0)
            if text not in asked:
                asked.add(text)
                asked_for += kind == "exists"
                yield number, scene, text, answer
