"""Pictures by step, as MLflow's image view shows them: files whose names tell key and step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from peftsweep.records.files import IMAGES_FOLDER

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ARTIFACT = re.compile(r"images/(?P<key>[^+%]*)[+%]step[+%](?P<step>\d+)[+%].*\.png")


def log_picture(client: MlflowClient, run_id: str, key: str, picture: np.ndarray, step: int, milliseconds: int) -> None:
    """picture: uint8 (h, w, 3)."""
    client.log_image(run_id, picture, key=key, step=step, timestamp=milliseconds, synchronous=True)


def known_pictures(client: MlflowClient, run_id: str) -> set[tuple[str, int]]:
    """Key and step of what a run holds."""
    found = (_ARTIFACT.fullmatch(info.path) for info in client.list_artifacts(run_id, IMAGES_FOLDER))
    return {(match["key"], int(match["step"])) for match in found if match}


def read_picture(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
