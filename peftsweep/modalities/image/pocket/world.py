"""The miniature's world of pictures: things and toys on grounds, which models of a few million parameters can learn.

One particular toy, the concept, is never drawn for pre-training, nor is any that looks nearly like it: "sks toy" is
what fine-tuning teaches, from 14 photos. Everything follows from a `numpy.random.Generator`; no picture comes from
elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import yaml

from peftsweep.modalities.image.pocket.drawing import COLOURS, FORMS, GROUNDS, LIGHTS, Canvas, Point, draw_toy, vary
from peftsweep.modalities.image.pocket.scene import (
    BELLIES,
    BODY_FORMS,
    EARS,
    HEAD_FORMS,
    Scene,
    Thing,
    Toy,
    place_words,
    relation_words,
)

SIZES = {"small": 0.17, "": 0.26, "large": 0.36}  # radius as a share of the picture's side; "" goes without saying
RELATIONS = ("left of", "right of", "above", "below", "inside", "on top of")
CONCEPT_NAME = "sks toy"  # "sks" is no word of the drawn world
_CONCEPT_DATA = yaml.safe_load(Path(__file__).with_name("concept.yaml").read_text(encoding="utf-8"))
DRIFT_PROMPTS, SAMPLE_PROMPTS = tuple(_CONCEPT_DATA["drift"]), tuple(_CONCEPT_DATA["samples"])
CONCEPT = Toy("pointed", "purple", "square", "yellow", "long", "starry", "white")


def resembles_concept(toy: Toy) -> bool:
    """Whether a toy shares five or more of its seven traits with the concept; pre-training draws no such toy."""
    return sum(a == b for a, b in zip(astuple(toy), astuple(CONCEPT), strict=True)) >= 5


def scenes(seed: int) -> Iterator[Scene]:
    """Endless scenes of pre-training: half of them of toys, none of which resembles the concept."""
    rng = np.random.default_rng(seed)
    while True:
        yield random_scene(rng)


def random_scene(rng: np.random.Generator) -> Scene:
    ground = _pick(rng, GROUNDS)
    light = "day" if ground == "sky" or rng.random() < 0.6 else _pick(rng, LIGHTS)
    kind = rng.random()
    if kind < 0.22:
        return Scene(_random_thing(rng, _pick(rng, SIZES)), ground, light)
    if kind < 0.5:
        return Scene(_random_thing(rng), ground, light, _pick(rng, RELATIONS), _random_thing(rng))
    if kind < 0.75:
        return Scene(_random_toy(rng), ground, light)
    return Scene(_random_toy(rng), ground, light, "next to", _random_thing(rng))


def vary_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene that keeps some traits of another: its surroundings with another subject, or the other way round."""
    stranger = random_scene(rng)
    if rng.random() < 0.5:
        return replace(stranger, ground=scene.ground, light=scene.light)
    return replace(scene, ground=stranger.ground, light=stranger.light)


def _pick(rng: np.random.Generator, choices: Iterable[str]) -> str:
    options = tuple(choices)
    return options[int(rng.integers(len(options)))]


def _random_thing(rng: np.random.Generator, size: str = "") -> Thing:
    return Thing(_pick(rng, FORMS), _pick(rng, COLOURS), size)


def _random_toy(rng: np.random.Generator) -> Toy:
    while True:
        toy = Toy(
            body_form=_pick(rng, BODY_FORMS),
            body_colour=_pick(rng, COLOURS),
            head_form=_pick(rng, HEAD_FORMS),
            head_colour=_pick(rng, COLOURS),
            ears=_pick(rng, EARS),
            belly=_pick(rng, BELLIES),
            belly_colour=_pick(rng, COLOURS),
        )
        if toy.body_colour != toy.belly_colour and not resembles_concept(toy):
            return toy


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A picture of a scene, uint8 (64, 64, 3); places, sizes, shades and brightness vary with the generator."""
    ground, pattern = GROUNDS[scene.ground]
    canvas = Canvas(vary(ground, rng))
    if pattern:
        pattern(canvas, rng)
    (centre, radius), (other_centre, other_radius) = _arrange(scene, rng)
    if scene.other:
        _draw_thing(canvas, scene.other, other_centre, other_radius, rng)
    if isinstance(scene.subject, Toy):
        draw_toy(canvas, scene.subject, centre, radius, rng)
    else:
        _draw_thing(canvas, scene.subject, centre, radius, rng)
    return canvas.pixels(scene.light, rng.uniform(0.92, 1.08))


def _draw_thing(canvas: Canvas, thing: Thing, centre: Point, radius: float, rng: np.random.Generator) -> None:
    FORMS[thing.form](canvas, centre, radius, vary(COLOURS[thing.colour], rng))


# Centre and radius of the subject, centre and radius of the other thing, before they are moved at random.
_ARRANGEMENTS: dict[str, tuple[float, ...]] = {
    "left of": (0.26, 0.5, 0.19, 0.74, 0.5, 0.19),
    "right of": (0.74, 0.5, 0.19, 0.26, 0.5, 0.19),
    "above": (0.5, 0.25, 0.19, 0.5, 0.75, 0.19),
    "below": (0.5, 0.75, 0.19, 0.5, 0.25, 0.19),
    "inside": (0.5, 0.52, 0.15, 0.5, 0.5, 0.38),
    "on top of": (0.5, 0.34, 0.17, 0.5, 0.68, 0.21),
    "next to": (0.36, 0.52, 0.36, 0.82, 0.68, 0.14),
}


def _arrange(scene: Scene, rng: np.random.Generator) -> tuple[tuple[Point, float], tuple[Point, float]]:
    """Centre and radius of the subject and of the other thing."""
    size = 0.4 if isinstance(scene.subject, Toy) else SIZES[scene.subject.size]
    x, y, radius, other_x, other_y, other_radius = _ARRANGEMENTS.get(scene.relation, (0.5, 0.5, size, 0.5, 0.5, 0.0))
    if scene.relation == "next to" and rng.random() < 0.5:
        x, other_x = 1 - x, 1 - other_x
    room = 0.05 if scene.other else min(0.14, 0.49 - radius)
    dx, dy = rng.uniform(-room, room, 2)
    grown = rng.uniform(0.9, 1.08)
    return ((x + dx, y + dy), radius * grown), ((other_x + dx, other_y + dy), other_radius * grown)


def concept_photos(split: str) -> list[tuple[np.ndarray, str]]:
    """Pictures of the concept, uint8 (64, 64, 3) each, with their prompts. split: "train" 14, "valid" 4, "test" 8.

    No two prompts of any splits are equal.
    """
    number = list(_CONCEPT_DATA["photos"]).index(split)
    photos = []
    for index, setting in enumerate(_CONCEPT_DATA["photos"][split]):
        ground, light, *beside = setting.split()
        scene = Scene(CONCEPT, ground, light)
        if beside:
            colour, form = beside
            scene = replace(scene, relation="next to", other=Thing(form, colour))
        prompt = f"{CONCEPT_NAME}{relation_words(scene)} {place_words(scene)}"
        photos.append((draw(scene, np.random.default_rng([number, index])), prompt))
    return photos
