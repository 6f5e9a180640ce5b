"""The photos of a concept: a user's folder, a hub data set, or the drawn world; opened one split at a time.

    my_photos/metadata.jsonl    {"file_name": "00.jpg", "prompt": "sks bear plushie sitting on a rock"}
    my_photos/00.jpg            the shorter side is scaled to the resolution, the middle is cut out

Photos are few, so each is in one split only, and a fifth of them at most is held out for validation and for test each.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from peftsweep.errors import DataError, Problem
from peftsweep.modalities.image.pocket.world import concept_photos
from peftsweep.modalities.image.settings import ImageGenConfig
from peftsweep.modalities.load_errors import hub_data_errors

# The reference benchmark holds 2 and 4 of its 20 photos out.
MOST_HELD_OUT = {"valid": 2, "test": 4}
METADATA_FILE = "metadata.jsonl"
PROMPT_KEYS = ("prompt", "text")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
IMAGE_COLUMN = "image"


@dataclass(frozen=True)
class Photo:
    """A photo, opened. pixels: uint8 (h, w, 3), the shorter side as long as the resolution; digest: of what it was
    made from."""

    name: str
    prompt: str
    digest: str
    pixels: np.ndarray


@dataclass(frozen=True)
class PhotoSource:
    """Where photos come from. `open` gives those of a split, and opens no others."""

    name: str
    open: Callable[[str], list[Photo]]


_Unopened = tuple[str, str, Callable[[], tuple[str, np.ndarray]]]  # name, prompt, opens it: digest, pixels


def build_source(config: ImageGenConfig, *, embedded_model: bool) -> PhotoSource:
    """The photos that a configuration asks for. `auto`: files if given, drawn ones for embedded models, else the hub.

    Raises DataError where they can't be found or split; a photo that can't be read is told when its split is opened.
    """
    kind = source_kind(config, embedded_model=embedded_model)
    if kind == "embedded":
        return PhotoSource(kind, partial(_drawn_photos, config))
    splits = _split(_folder_photos(config) if kind == "files" else _hub_photos(config), config)
    return PhotoSource(kind, lambda split: [Photo(name, prompt, *read()) for name, prompt, read in splits[split]])


def source_kind(config: ImageGenConfig, *, embedded_model: bool) -> str:
    """Where the photos are from: files, embedded or hub."""
    if config.source != "auto":
        return config.source
    return "files" if config.images else "embedded" if embedded_model else "hub"


def centre_square(pixels: np.ndarray) -> np.ndarray:
    """The middle of a picture, as wide as high: uint8 (h, w, 3) -> (s, s, 3)."""
    side = min(pixels.shape[:2])
    top, left = (round((length - side) / 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def random_squares(pixels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` squares out of a picture, at random places, every other one mirrored: uint8 (h, w, 3) -> (n, s, s, 3)."""
    side, rng = min(pixels.shape[:2]), np.random.default_rng(seed)
    corners = [rng.integers(0, length - side, endpoint=True, size=count) for length in pixels.shape[:2]]
    squares = [pixels[top : top + side, left : left + side] for top, left in zip(*corners, strict=True)]
    return np.stack([square[:, ::-1] if number % 2 else square for number, square in enumerate(squares)])


def digest_of_photos(photos: Sequence[Photo]) -> str:
    """Fingerprint of photos and their prompts, in order."""
    content = json.dumps([(photo.digest, photo.prompt) for photo in photos])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _drawn_photos(config: ImageGenConfig, split: str) -> list[Photo]:
    limit = {"valid": config.valid_photos, "test": config.test_photos}.get(split)
    return [
        Photo(f"{split} {number}", prompt, hashlib.sha256(pixels.tobytes()).hexdigest(), pixels)
        for number, (picture, prompt) in enumerate(concept_photos(split)[:limit])
        for pixels in [_scaled(Image.fromarray(picture), config.resolution)]
    ]


def _split(photos: Sequence[_Unopened], config: ImageGenConfig) -> dict[str, list[_Unopened]]:
    """The same for every job, whatever its seed, and the reference benchmark's for its photos."""
    wanted = {"valid": config.valid_photos, "test": config.test_photos}
    held_out = {
        split: min(max(1, len(photos) // 5), MOST_HELD_OUT[split]) if count is None else count
        for split, count in wanted.items()
    }
    n_train = len(photos) - sum(held_out.values())
    if n_train < 1:
        rule = f"photos must be at least {1 + sum(held_out.values())}: {held_out['valid']} are held out for validation"
        rule += f", {held_out['test']} for the test, and one must be left to train on"
        fewer = ", or hold fewer out: task.valid_photos, task.test_photos" if len(photos) >= 3 else ""
        fix = f"Add photos{fewer}."
        raise DataError(Problem(rule, len(photos), config.images or config.dataset, fix))
    order = [photos[number] for number in np.random.RandomState(0).permutation(len(photos))]
    n_seen = n_train + held_out["valid"]
    return {"train": order[:n_train], "valid": order[n_train:n_seen], "test": order[n_seen:]}


def _folder_photos(config: ImageGenConfig) -> list[_Unopened]:
    """Every photo of a folder, with the prompt of its row, or all with one prompt."""
    folder = Path(config.images or "").expanduser()
    if not config.images or not folder.is_dir():
        rule = "task.images must be an existing folder of photos"
        raise DataError(Problem(rule, config.images or "nothing", "task.images"))
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not files:
        rule = f"a folder of photos must hold files that end with one of {', '.join(ENDINGS)}"
        raise DataError(Problem(rule, str(folder), "task.images"))
    one_prompt = config.instance_prompt
    prompts = dict.fromkeys(files, one_prompt) if one_prompt else _prompts_of_rows(folder, files)
    return [
        (str(path.relative_to(folder)), prompt, partial(_read_file, path, path.stat().st_mtime_ns, config.resolution))
        for path, prompt in prompts.items()
    ]


def _prompts_of_rows(folder: Path, files: Sequence[Path]) -> dict[Path, str]:
    """Photo -> prompt, in the order of the rows, as the `datasets` library's image folders have them."""
    path = folder / METADATA_FILE
    if not path.is_file():
        fix = f"Write {METADATA_FILE} (a row a photo: file_name, prompt), or give task.instance_prompt=<text> for all."
        rule = f"a folder of photos needs prompts: a {METADATA_FILE}"
        raise DataError(Problem(rule, str(folder), "task.images", fix))
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    prompts = dict(_row(line, folder, f"{path}, line {number}") for number, line in lines if line.strip())
    without = [file.name for file in files if file not in prompts]
    if without:
        rule = f"prompts must be as many as photos; {len(without)} photos have no row: {', '.join(without[:3])}"
        raise DataError(Problem(rule, source=str(path), fix="Add the rows, or move the files away."))
    return prompts


def _row(line: str, folder: Path, source: str) -> tuple[Path, str]:
    try:
        row = json.loads(line)
        name = str(row["file_name"])
        prompt = next(str(row[key]) for key in PROMPT_KEYS if row.get(key))
    except (ValueError, TypeError, AttributeError, KeyError, StopIteration):
        rule = f"a row must be JSON with a file_name and a {' or '.join(PROMPT_KEYS)}"
        raise DataError(Problem(rule, line[:100], source)) from None
    path = folder / name
    if not path.is_file() or not path.is_relative_to(folder):
        raise DataError(Problem("a row's file_name must be a file beside it", name, source))
    return path, prompt


def _hub_photos(config: ImageGenConfig) -> list[_Unopened]:
    encoded = _hub_column(config.dataset)
    prompts = [config.instance_prompt] * len(encoded) if config.instance_prompt else config.prompts
    if len(prompts) != len(encoded):
        rule = f"prompts must be as many as photos; the data set has {len(encoded)}"
        fix = "Give task.prompts, one for each photo in order, or task.instance_prompt for all."
        raise DataError(Problem(rule, len(prompts), "task.prompts", fix))
    names = [f"{config.dataset}, row {number}" for number in range(len(encoded))]
    return [
        (name, prompt, partial(_read, data, config.resolution, name))
        for name, prompt, data in zip(names, prompts, encoded, strict=True)
    ]


@lru_cache(maxsize=2)
def _hub_column(dataset: str) -> list[bytes]:
    """The photos of a hub data set as it stores them."""
    import datasets

    datasets.disable_progress_bars()
    rule = f"the photos must be readable from the hub, in a column {IMAGE_COLUMN!r}"
    fix = "Download it first, give a folder as task.images, or use task.source=embedded."
    with hub_data_errors(rule, dataset, "task.dataset", fix):
        table = datasets.load_dataset(dataset, split="train").cast_column(IMAGE_COLUMN, datasets.Image(decode=False))
        return [photo["bytes"] or Path(photo["path"]).read_bytes() for photo in table[IMAGE_COLUMN]]


@lru_cache(maxsize=128)
def _read_file(path: Path, modified_ns: int, resolution: int) -> tuple[str, np.ndarray]:
    """Cached, until the file is modified, for the jobs of one process."""
    return _read(path.read_bytes(), resolution, str(path))


def _read(data: bytes, resolution: int, source: str) -> tuple[str, np.ndarray]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = _scaled(image, resolution)
    except Exception as error:  # each of Pillow's decoders raises its own
        reason = "it is of no known format" if isinstance(error, UnidentifiedImageError) else str(error)
        fix = "Save it again as JPEG or PNG, or take it away."
        raise DataError(Problem(f"a photo must be a readable image ({reason})", source, fix=fix)) from error
    return hashlib.sha256(data).hexdigest(), pixels


def _scaled(image: Any, resolution: int) -> np.ndarray:
    """Upright, in RGB on white, the shorter side `resolution` pixels long."""
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        opaque = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    factor = resolution / min(upright.size)
    width, height = (max(resolution, int(length * factor)) for length in upright.size)
    return np.asarray(upright.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
