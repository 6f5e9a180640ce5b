from collections import Counter
from itertools import islice

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from peftsweep.modalities.encoder.pocket.scenes import (
    CLAIMS,
    KINDS,
    WORDS_OF,
    WRONG,
    make_claims,
    make_tagged,
    pretraining_rows,
)
from peftsweep.modalities.text_world import split_of

CLAIMS_OF = {split: make_claims(split, 300) for split in ("train", "valid", "test")}


def test_each_class_is_as_frequent_as_the_others() -> None:
    for claims in CLAIMS_OF.values():
        assert Counter(label for _, _, label in claims) == dict.fromkeys(CLAIMS, 60)


def test_no_scene_is_in_two_splits() -> None:
    scenes = [{text for text, _, _ in claims} for claims in CLAIMS_OF.values()]
    assert not scenes[0] & scenes[1] | scenes[0] & scenes[2] | scenes[1] & scenes[2]
    assert all(split_of(text) == split for split, claims in CLAIMS_OF.items() for text, _, _ in claims)


def test_the_same_seed_makes_the_same_claims_and_another_makes_others() -> None:
    assert make_claims("test", 30) == make_claims("test", 30) != make_claims("test", 30, seed=1)


FORM_WORDS = {word.strip(".,") for kind in KINDS.values() for again in kind.again for word in again.split()}


def test_a_claim_about_what_is_told_differs_from_it_in_no_word_or_in_one() -> None:
    for text, claim, label in CLAIMS_OF["train"]:
        if label != "not told":
            words = {word.strip(".,") for word in claim.split()} - FORM_WORDS
            new = words - {word.strip(".,") for word in text.split()}
            assert len(new) <= (label != "told"), (text, claim)
            assert all(word in {one for slot in WRONG[label] for one in WORDS_OF[slot]} for word in new)


def test_no_claim_tells_by_its_own_words_what_it_is() -> None:
    train, test = (make_claims(split, count) for split, count in (("train", 2000), ("test", 600)))
    words = CountVectorizer()
    model = LogisticRegression().fit(
        words.fit_transform([claim for _, claim, _ in train]), [label for *_, label in train]
    )
    assert (
        model.score(words.transform([claim for _, claim, _ in test]), [label for *_, label in test]) < 0.42
    )  # two fifths: a form without a place has no wrong one


def test_pre_training_reads_scenes_of_the_training_split_and_says_them_again() -> None:
    for passages in (False, True):
        rows = list(islice(pretraining_rows(seed=0, passages=passages), 200))
        assert sum(bool(pair) for _, pair, _ in rows) == pytest.approx(80 if passages else 200, abs=20 * passages)
        assert not any(label in pair for _, pair, _ in rows for label in ("not told", *WRONG))


TOLD_WORDS = {word.strip(".,") for kind in KINDS.values() for told in kind.told for word in told.split()}


def test_what_is_tagged_is_a_word_that_the_scene_does_not_tell() -> None:
    rows = make_tagged("test", 200)
    assert len({words for words, _ in rows}) == 200
    seen = Counter[str]()
    for words, tags in rows:
        assert len(words) == len(tags)
        for place, (word, tag) in enumerate(zip(words, tags, strict=True)):
            seen[tag] += 1
            if tag != "O":
                scene = words[: [end for end, one in enumerate(words) if one == "."][2]]
                assert word not in scene or word in TOLD_WORDS, (words, place)
    assert seen.keys() == {"O", "B-DETAIL", "B-PLACE", "B-THING"}
    assert min(seen.values()) > 40
