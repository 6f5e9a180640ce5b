import itertools
from dataclasses import replace

import numpy as np
import pytest

from peftsweep.modalities.image.pocket.drawing import FORMS, GROUNDS, LIGHTS, SIDE
from peftsweep.modalities.image.pocket.scene import Scene, Thing, Toy, caption
from peftsweep.modalities.image.pocket.world import (
    CONCEPT,
    CONCEPT_NAME,
    DRIFT_PROMPTS,
    RELATIONS,
    SAMPLE_PROMPTS,
    concept_photos,
    draw,
    resembles_concept,
    scenes,
    vary_scene,
)

SPLITS = ("train", "valid", "test")
SCENES = list(itertools.islice(scenes(0), 20_000))


def captions(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [caption(scene, rng) for scene in SCENES[:count]]


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


def test_pictures_are_64_by_64_pixels_of_three_bytes() -> None:
    for scene in SCENES[:50]:
        picture = draw(scene, np.random.default_rng(0))
        assert (picture.shape, picture.dtype) == ((SIDE, SIDE, 3), np.uint8)


def test_pictures_follow_their_generator_alone() -> None:
    first, again, other = (draw(SCENES[0], np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_scenes_follow_their_seed_alone() -> None:
    assert list(itertools.islice(scenes(0), 20)) == SCENES[:20] != list(itertools.islice(scenes(1), 20))


@pytest.mark.parametrize("change", ["subject", "ground", "light", "other", "relation"])
def test_every_part_of_a_scene_is_seen_in_its_picture(change: str) -> None:
    scene = Scene(Thing("star", "red"), "grass", "day", "left of", Thing("ball", "blue"))
    changes = {"subject": Thing("heart", "red"), "ground": "sand", "light": "night", "other": None, "relation": "above"}
    pictures = [draw(one, np.random.default_rng(0)) for one in (scene, replace(scene, **{change: changes[change]}))]
    assert difference(*pictures) > 3


@pytest.mark.parametrize("trait", vars(CONCEPT))
def test_every_trait_of_a_toy_is_seen_in_its_picture(trait: str) -> None:
    others = {"ears": "no", "belly": "plain"}
    colours = {name: "green" for name in vars(CONCEPT) if name.endswith("colour")}
    forms = {"body_form": "round", "head_form": "pointed"}
    changed = replace(CONCEPT, **{trait: {**others, **colours, **forms}[trait]})
    pictures = [draw(Scene(toy, "white"), np.random.default_rng(0)) for toy in (CONCEPT, changed)]
    assert difference(*pictures) > 0.5


def test_pretraining_draws_no_toy_that_resembles_the_concept() -> None:
    toys = [scene.subject for scene in SCENES if isinstance(scene.subject, Toy)]
    assert len(toys) > 8000
    assert not [toy for toy in toys if resembles_concept(toy)]


def test_varied_scenes_show_no_toy_that_resembles_the_concept_either() -> None:
    rng = np.random.default_rng(0)
    subjects = [vary_scene(scene, rng).subject for scene in SCENES[:2000]]
    assert not [toy for toy in subjects if isinstance(toy, Toy) and resembles_concept(toy)]


def test_a_toy_resembles_the_concept_from_five_traits_on() -> None:
    four = replace(CONCEPT, body_colour="red", ears="no", belly="plain")
    assert resembles_concept(CONCEPT)
    assert resembles_concept(replace(four, ears=CONCEPT.ears))
    assert not resembles_concept(four)


def test_pretraining_shows_every_form_ground_light_and_relation() -> None:
    things = {scene.subject.form for scene in SCENES if isinstance(scene.subject, Thing)}
    assert things == set(FORMS)
    assert {scene.ground for scene in SCENES} == set(GROUNDS)
    assert {scene.light for scene in SCENES} == set(LIGHTS)
    assert {scene.relation for scene in SCENES} == {"", "next to", *RELATIONS}


def test_captions_never_hold_the_concept_s_name() -> None:
    assert not [text for text in captions(20_000) if "sks" in text]


def test_captions_name_nothing_that_is_not_there() -> None:
    rng = np.random.default_rng(0)
    for scene in SCENES[:2000]:
        words = set(caption(scene, rng).replace(",", "").split())
        subject = vars(scene.subject)
        seen = {*subject.values(), scene.ground, *(vars(scene.other).values() if scene.other else ())}
        assert {word for word in words if word in FORMS} <= seen


def test_captions_are_put_in_many_ways() -> None:
    rng = np.random.default_rng(0)
    toy = Toy("round", "red", "square", "blue", "long", "striped", "white")
    assert len({caption(Scene(toy, "grass", "night"), rng) for _ in range(200)}) > 60


def test_no_caption_has_a_hole() -> None:
    assert not [text for text in captions(3000) if "  " in text or text != text.strip() or text.endswith("with")]


def test_the_concept_has_14_4_and_8_photos() -> None:
    assert [len(concept_photos(split)) for split in SPLITS] == [14, 4, 8]


def test_no_two_photos_share_a_prompt() -> None:
    prompts = [prompt for split in SPLITS for _, prompt in concept_photos(split)]
    assert len(set(prompts)) == 26
    assert all(prompt.startswith(CONCEPT_NAME) for prompt in prompts)


def test_photos_come_with_their_prompts_and_never_change() -> None:
    first, again = concept_photos("test"), concept_photos("test")
    assert [prompt for _, prompt in first] == [prompt for _, prompt in again]
    assert [prompt for _, prompt in first[:2]] == ["sks toy next to a red ball on grass", "sks toy on sand"]
    assert all(np.array_equal(one, other) for (one, _), (other, _) in zip(first, again, strict=True))


def test_drift_is_measured_on_prompts_without_the_concept() -> None:
    assert len(set(DRIFT_PROMPTS)) == 10
    assert not [prompt for prompt in DRIFT_PROMPTS if "sks" in prompt]


def test_samples_show_the_concept_and_another_toy() -> None:
    assert 3 <= len(SAMPLE_PROMPTS) <= 4
    assert {CONCEPT_NAME in prompt for prompt in SAMPLE_PROMPTS} == {True, False}
