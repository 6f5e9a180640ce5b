"""Pictures as files: uint8 arrays (h, w, 3) in, PNG out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from peftsweep.records.files import SAMPLES_FOLDER

SAMPLE_FILE = re.compile(r"(?P<step>\d{6,}) (?P<caption>.*)\.png")
MAX_CAPTION_LENGTH = 80
# The contact sheet of an image task: a row for each prompt, a column for each kind of picture, the prompt below. Drawn
# by the task, cut into its pictures by the report. Pixels.
SHEET_FILE = "contact_sheet.png"
SHEET_COLUMNS = ("base", "adapted", "photo")  # the first only where the base was asked too
SHEET_GAP, SHEET_LINE = 8, 18
SHEET_SIDES = (192, 384)  # least and most of a picture
SHEET_EMPTY = (232, 232, 232)  # where a picture is missing


def write_pictures(pictures: Mapping[str, np.ndarray], folder: Path) -> None:
    """Each as `<name>.png` under `folder`; a name may hold slashes."""
    from PIL import Image  # a text job does without

    for name, picture in pictures.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


def read_picture(path: Path) -> np.ndarray:
    """As it was written."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def sample_name(step: int, caption: str) -> str:
    """The name, without ending, of a sample in a job's folder. Files sort by step."""
    return f"{step:06d} {plain_caption(caption)}"


def plain_caption(caption: str) -> str:
    """What is left of a caption in file names and MLflow's keys: letters of ASCII, digits, blanks, dots, dashes."""
    words = re.sub(r"[^A-Za-z0-9.\- ]+", " ", caption).split()
    return " ".join(words)[:MAX_CAPTION_LENGTH].strip() or "picture"


def stored_samples(folder: Path) -> Iterator[tuple[int, str, Path]]:
    """Step, caption and file of the samples in a job's folder, by step."""
    for path in sorted((folder / SAMPLES_FOLDER).glob("*.png")):
        if found := SAMPLE_FILE.fullmatch(path.name):
            yield int(found["step"]), found["caption"], path
