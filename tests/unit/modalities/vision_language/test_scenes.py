"""The drawn world: what is asked can be seen, and can't be guessed."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import pytest

from peftsweep.modalities.image.pocket.drawing import COLOURS, FORMS
from peftsweep.modalities.vision_language.pocket.pretrain import PATCHES, patch_classes
from peftsweep.modalities.vision_language.pocket.scenes import (
    Placed,
    Scene,
    caption,
    draw,
    make_questions,
    make_scene,
    question,
    said_and_asked,
    scenes_of,
)
from peftsweep.modalities.vision_language.rows import EMBEDDED_PICTURES, build_source
from peftsweep.modalities.vision_language.settings import VqaConfig

SCENE = Scene((Placed("star", "red", 0, 0), Placed("ball", "blue", 2, 1)), "grass")


def rows() -> list[tuple[Scene, str, str]]:
    return [row[1:] for row in make_questions("train", 300, 5)]


def test_answers_are_those_of_the_scene() -> None:
    rng = random.Random(0)
    told = {
        question(rng, SCENE, kind, is_there=True) for kind in ("colour", "thing", "beside", "count") for _ in range(99)
    }
    assert told == {
        ("What colour is the star?", "red"),
        ("What colour is the ball?", "blue"),
        ("What is red?", "star"),
        ("What is blue?", "ball"),
        ("What is left of the ball?", "star"),
        ("What is above the ball?", "star"),
        ("What is right of the star?", "ball"),
        ("What is below the star?", "ball"),
        ("How many things are there?", "2"),
    }


def test_what_is_not_there_is_made_of_words_that_are() -> None:
    rng = random.Random(0)
    asked = {question(rng, SCENE, "exists", is_there=False) for _ in range(50)}
    assert asked == {("Is there a blue star?", "no"), ("Is there a red ball?", "no")}


def test_a_caption_names_everything() -> None:
    assert caption(SCENE) == "There are 2 things on grass: a red star and a blue ball."


def test_no_scene_is_in_two_splits_and_each_has_its_questions() -> None:
    names = {
        split: {scene.text for _, scene, _, _ in make_questions(split, 60, 4)} for split in ("train", "valid", "test")
    }
    assert [len(found) for found in names.values()] == [60, 60, 60]
    assert not set.intersection(*names.values())
    assert names["train"].isdisjoint(names["test"] | names["valid"])


def test_pretraining_draws_scenes_of_the_training_split_alone() -> None:
    tested = {scene.text for _, scene, _, _ in make_questions("test", 100, 1)}
    assert not tested & {scene.text for scene in islice(scenes_of("train"), 3000)}


def test_who_does_not_look_answers_less_than_a_third() -> None:
    """The best that a reader of questions alone can do: always the commonest answer to the same words, the form and
    colour that are asked about left out."""
    names = set(FORMS) | set(COLOURS)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, asked, answer in rows():
        kind = " ".join("X" if word.strip("?") in names else word for word in asked.replace(" an ", " a ").split())
        answers[kind][answer] += 1
    right = sum(max(counts.values()) for counts in answers.values())
    assert right / sum(sum(counts.values()) for counts in answers.values()) < 0.33


def test_yes_and_no_are_as_frequent() -> None:
    told = Counter(answer for _, _, answer in rows())
    assert abs(told["yes"] - told["no"]) <= 1


@pytest.mark.parametrize("word_first", [False, True])
def test_the_form_of_the_task_is_never_pre_trained(word_first: bool) -> None:
    rng = random.Random(1)
    turns = [said_and_asked(rng, make_scene(rng), word_first=word_first) for _ in range(3000)]
    assert all(" " in answer for _, answer in turns)  # never a word alone
    said = " ".join(map(" ".join, turns))
    assert "?" not in said
    assert not any(words in said for words in ("What", "How many", "Is there"))


def test_a_picture_shows_its_things_where_they_are() -> None:
    pixels = draw(SCENE, 0).astype(int)
    empty = draw(Scene((), "grass"), 0).astype(int)
    assert pixels.shape == (64, 64, 3)
    red, blue = pixels[10, 10], pixels[32, 53]
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert np.abs(pixels - empty)[44:, :40].mean() < np.abs(pixels - empty)[:20, :20].mean()


def test_patches_are_told_by_the_thing_that_covers_them() -> None:
    form, colour = (kind.reshape(PATCHES, PATCHES) for kind in patch_classes(SCENE))
    assert form[1, 1] == 1 + list(FORMS).index("star")
    assert colour[4, 6] == 1 + list(COLOURS).index("blue")
    assert form[7, 0] == colour[7, 0] == 0


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_embedded_task_has_its_rows(split: str) -> None:
    pictures, each = EMBEDDED_PICTURES[split]
    found = build_source(VqaConfig(name="vqa"), embedded_model=True).read(split)
    assert len(found) == pictures * each
