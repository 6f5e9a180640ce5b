"""The pictures that image tasks were judged by, small enough for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftsweep.report.comparison import Row
from peftsweep.report.jobs import Job

CONTACT_SHEET_FILE = "contact_sheet.png"
MOST_PIXELS_WIDE = 640
QUALITY = 82  # of WebP, 0 to 100


@dataclass(frozen=True)
class Sheet:
    """name: of the row. source: a data URI. width, height: pixels."""

    name: str
    source: str
    width: int
    height: int


def read_sheets(rows: Sequence[Row], jobs: Sequence[Job]) -> Iterator[Sheet]:
    """The contact sheet of each row's first scored job that left one; one that can't be read is left out."""
    by_place = {job.place: job for job in jobs}
    for row in rows:
        paths = (by_place[place].files.path(CONTACT_SHEET_FILE) for place in row.places[:1] if place in by_place)
        path = next((path for path in paths if path), None)
        if path and (found := _sheet(row.name, path)):
            yield found


def _sheet(name: str, path: Path) -> Sheet | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    if picture.width > MOST_PIXELS_WIDE:
        picture = picture.resize((MOST_PIXELS_WIDE, round(picture.height * MOST_PIXELS_WIDE / picture.width)))
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=QUALITY, method=2)
    source = "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    return Sheet(name, source, picture.width, picture.height)
