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


def test_every_word_of_a_scene_has_a_tag_and_who_gives_is_told_by_the_sentence() -> None:
    rows = make_tagged("test", 200)
    assert len({words for words, _ in rows}) == 200
    assert all(split_of(" ".join(words).replace(" .", ".")) == "test" for words, _ in rows)
    for words, tags in rows:
        tag_of = dict(zip(words, tags, strict=True))
        for place, word in enumerate(words):
            if word == "gives":
                assert tags[place - 1] == "B-GIVER"
            elif word == "gets":
                assert tags[place - 1] == "B-TAKER"
        assert all(tag == "O" for word, tag in tag_of.items() if word in ("gives", "gets", ".", "the"))
    assert any({"B-PET", "I-PET"} <= set(tags) for _, tags in rows)
