from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peftsweep.records.pictures import SAMPLES_FOLDER, plain_caption, sample_name, stored_samples, write_pictures

PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def test_a_picture_is_written_without_loss(tmp_path: Path) -> None:
    write_pictures({"test/00-0": PICTURE}, tmp_path)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "test/00-0.png")), PICTURE)


def test_samples_are_found_again_by_step_and_caption(tmp_path: Path) -> None:
    for step in (100, 50, 2_000_000):
        write_pictures({sample_name(step, "a toy, at night"): PICTURE}, tmp_path / SAMPLES_FOLDER)
    found = [(step, caption) for step, caption, _ in stored_samples(tmp_path)]
    assert found == [(50, "a toy at night"), (100, "a toy at night"), (2_000_000, "a toy at night")]


@pytest.mark.parametrize(
    ("caption", "plain"),
    [
        ('sks cat with a VIP "all access" pass', "sks cat with a VIP all access pass"),
        ("../../etc/passwd", ".. .. etc passwd"),
        ("ein Bär / 熊", "ein B r"),
        ("熊", "picture"),
        ("x" * 200, "x" * 80),
    ],
)
def test_any_prompt_makes_a_file_name(caption: str, plain: str) -> None:
    assert plain_caption(caption) == plain


def test_a_folder_without_samples_has_none(tmp_path: Path) -> None:
    assert list(stored_samples(tmp_path)) == []
