"""The contact sheets that image tasks leave, cut into their pictures: all methods beside each other."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftsweep.records.jobs import Job
from peftsweep.records.pictures import SHEET_COLUMNS, SHEET_EMPTY, SHEET_FILE, SHEET_GAP, SHEET_LINE, SHEET_SIDES
from peftsweep.report.analysis.comparison import Row

if TYPE_CHECKING:
    from PIL.Image import Image

BASE, ADAPTED, PHOTO = SHEET_COLUMNS
SHARED = (PHOTO, BASE)  # the same for all methods, shown first
MOST_PIXELS_WIDE, PICTURE_PIXELS = 640, 192
QUALITY = 82  # of WebP, 0 to 100


@dataclass(frozen=True)
class Prompt:
    """What was drawn for one prompt. text: empty where only the sheet tells it, whose words are then in `words`, a data
    URI. pictures: data URIs, one for each column; empty where there is none."""

    text: str
    words: str
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """columns: photo, base, then the rows' names. whole: sheets that could not be cut, or show other prompts: the row's
    name, source as a data URI, width and height in pixels."""

    columns: tuple[str, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    whole: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Cut:
    """A sheet in pieces. columns: name -> a picture for each prompt, None where it is missing; words: below them."""

    columns: dict[str, list[Image | None]]
    words: list[Image]


def read_gallery(rows: Sequence[Row], jobs: Sequence[Job]) -> Gallery:
    """Of each row's first scored job that left a contact sheet; one that can't be read is left out."""
    sheets = dict(_sheets(rows, {job.location: job for job in jobs}))
    cuts = {name: found for name, (picture, _) in sheets.items() if (found := cut_sheet(picture))}
    first = next(iter(cuts.values()), None)
    alike = {name: cut for name, cut in cuts.items() if first and _shape(cut) == _shape(first)}
    whole = tuple(_whole(name, picture) for name, (picture, _) in sheets.items() if name not in alike)
    if first is None:
        return Gallery(whole=whole)
    columns = {name: first.columns[name] for name in SHARED if name in first.columns}
    columns |= {name: cut.columns[ADAPTED] for name, cut in alike.items()}
    _, job = sheets[next(iter(alike))]
    return Gallery(tuple(columns), tuple(_prompts(first, columns, job.prompts())), whole)


def _sheets(rows: Sequence[Row], by_location: dict[str, Job]) -> Iterator[tuple[str, tuple[Image, Job]]]:
    from PIL import Image, UnidentifiedImageError

    for row in rows:
        job = next((by_location[location] for location in row.locations[:1] if location in by_location), None)
        path = job.file(SHEET_FILE) if job else None
        try:
            if job and path:
                with Image.open(path) as opened:
                    yield row.name, (opened.convert("RGB"), job)
        except (OSError, UnidentifiedImageError):
            continue


def _shape(cut: Cut) -> tuple[list[str], int]:
    return list(cut.columns), len(cut.words)


def cut_sheet(sheet: Image) -> Cut | None:
    """A sheet's pictures, by its measures alone; None where these fit no layout, as of prompts of several lines."""
    for names in (SHEET_COLUMNS, SHEET_COLUMNS[1:]):
        side, rest = divmod(sheet.width - SHEET_GAP, len(names))
        side, height = side - SHEET_GAP, side - SHEET_GAP + 2 * SHEET_GAP + SHEET_LINE
        rows, beyond = divmod(sheet.height - SHEET_GAP - SHEET_LINE, height)
        if SHEET_SIDES[0] <= side <= SHEET_SIDES[1] and not rest and not beyond and rows:
            tops = [SHEET_GAP + SHEET_LINE + number * height for number in range(rows)]
            columns: dict[str, list[Image | None]] = {name: [] for name in names}
            for place, name in enumerate(names):
                left = SHEET_GAP + place * (side + SHEET_GAP)
                for picture in (sheet.crop((left, top, left + side, top + side)) for top in tops):
                    is_missing = picture.getcolors(1) == [(side * side, SHEET_EMPTY)]
                    columns[name].append(None if is_missing else picture.resize((PICTURE_PIXELS, PICTURE_PIXELS)))
            return Cut(columns, [_words(sheet, top + side + SHEET_GAP // 2) for top in tops])
    return None


def _words(sheet: Image, top: int) -> Image:
    """The line below a prompt's pictures, without the paper beside it."""
    from PIL import ImageOps

    line = sheet.crop((0, top, sheet.width, top + SHEET_LINE))
    left, _, right, _ = ImageOps.invert(line).getbbox() or (0, 0, sheet.width, 0)
    return line.crop((left, 0, right, SHEET_LINE))


def _prompts(first: Cut, columns: Mapping[str, Sequence[Image | None]], texts: Sequence[str]) -> Iterator[Prompt]:
    """texts: of the prompts with a photo, which come first."""
    for number, (words, photo) in enumerate(zip(first.words, first.columns[PHOTO], strict=True)):
        text = texts[number] if photo and number < len(texts) else ""
        pictures = (column[number] for column in columns.values())
        encoded = tuple(_encoded(picture) if picture else "" for picture in pictures)
        yield Prompt(text, "" if text else _encoded(words), encoded)


def _whole(name: str, picture: Image) -> dict[str, Any]:
    if picture.width > MOST_PIXELS_WIDE:
        picture = picture.resize((MOST_PIXELS_WIDE, round(picture.height * MOST_PIXELS_WIDE / picture.width)))
    return {"name": name, "source": _encoded(picture), "width": picture.width, "height": picture.height}


def _encoded(picture: Image) -> str:
    """As a data URI."""
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=QUALITY, method=2)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
