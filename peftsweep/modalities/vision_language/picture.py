"""A picture before it is read, and how it is opened; imports no torch."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from PIL import Image, ImageOps, UnidentifiedImageError

from peftsweep.errors import DataError, Problem

LEAST_SIDE = 2  # pixels: a single one is what trackers and broken exports leave


@dataclass(frozen=True)
class Picture:
    """A picture that is not opened yet. name: path, or what people call it; source: the row that names it."""

    name: str
    source: str = field(compare=False)
    read: Callable[[], bytes] = field(compare=False)

    @cached_property
    def digest(self) -> str:
        """Of what it holds."""
        return hashlib.sha256(self.read()).hexdigest()[:16]


def open_picture(picture: Picture) -> Image.Image:
    """Upright, in RGB, transparent parts on white. Raises DataError with the row that names it: missing, of no known
    format, cut off, or of a single pixel."""
    data = picture.read()
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                opaque = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
            opened = upright.convert("RGB")
    except Exception as error:  # each of Pillow's decoders raises its own
        reason = "it is of no known format" if isinstance(error, UnidentifiedImageError) else str(error)
        fix = "Save it again as JPEG or PNG, or take the row away."
        rule = f"a picture must be a readable image ({reason}): {picture.name}"
        raise DataError(Problem(rule, source=picture.source, fix=fix)) from error
    if min(opened.size) < LEAST_SIDE:
        rule = f"a picture must be at least {LEAST_SIDE} pixels wide and high: {picture.name}"
        size = f"{opened.width} x {opened.height}"
        raise DataError(Problem(rule, size, picture.source, "Mend it, or take the row away."))
    return opened
