"""Pictures as a model is given them: processed once, and kept in memory while there is room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from peftsweep.modalities.vision_language.picture import Picture, open_picture

KEPT_BYTES = 4 * 2**30  # of processed pictures; the rest is processed anew each time it is met
GRID = "image_grid_thw"  # of models whose pictures are lists of patches of any length


class PictureReader:
    """One processor's way with pictures, for the tasks of one job."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._kept_bytes = 0
        self._sizes: dict[str, tuple[int, int]] = {}
        self._ids_of_size = lru_cache(maxsize=None)(self._ids_of)

    @property
    def image_token_id(self) -> int:
        return int(self.processor.image_token_id)

    def ids(self, picture: Picture) -> tuple[int, ...]:
        """The tokens that stand for a picture: how many depends on its size alone."""
        if picture.name not in self._sizes:
            self._sizes[picture.name] = open_picture(picture).size
        return self._ids_of_size(self._sizes[picture.name])

    def _ids_of(self, size: tuple[int, int]) -> tuple[int, ...]:
        blank = Image.new("RGB", size)
        read = self.processor(text=[self.processor.image_token], images=[[blank]], add_special_tokens=False)
        return tuple(read["input_ids"][0])

    def tensors(self, picture: Picture) -> dict[str, Tensor]:
        """What the model is given for it, by name."""
        if picture.name in self._kept:
            return self._kept[picture.name]
        read = self.processor.image_processor(images=[[open_picture(picture)]], return_tensors="pt")
        found = {name: tensor for name, tensor in read.items() if isinstance(tensor, Tensor)}
        size = sum(tensor.nbytes for tensor in found.values())
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[picture.name] = found
            self._kept_bytes += size
        return found

    def given(self, rows: Sequence[Sequence[Picture]], input_ids: Tensor) -> Mapping[str, Tensor]:
        """What a pass over rows of pictures is given. input_ids: (b, s), padded, in which they have their tokens.

        Pictures of patches stand one after the other, (patches, ...); others row by row, (b, tiles, ...), and rows with
        fewer tiles are filled with empty ones.
        """
        each = [[self.tensors(picture) for picture in pictures] for pictures in rows]
        read = [tensors for row in each for tensors in row]
        if not read:
            return {}
        if GRID in read[0]:
            joined = {name: torch.cat([tensors[name] for tensors in read]) for name in read[0]}
            return {**joined, "mm_token_type_ids": (input_ids == self.image_token_id).int()}
        return {name: _stacked([[tensors[name] for tensors in row] for row in each]) for name in read[0]}


def _stacked(rows: Iterable[Sequence[Tensor]]) -> Tensor:
    """(b, tiles, ...) of rows of (1, tiles, ...)."""
    joined = [torch.cat(list(tensors), dim=1) for tensors in rows]
    most = max(tensor.shape[1] for tensor in joined)
    return torch.cat(
        [functional.pad(tensor, [0, 0] * (tensor.dim() - 2) + [0, most - tensor.shape[1]]) for tensor in joined]
    )


def rows_of_batch(batch: Mapping[str, Tensor], rows: Sequence[int], width: int) -> dict[str, Tensor]:
    """Some rows of a batch, their tokens cut to `width`; pictures of patches go with the row whose tokens they are."""
    by_patches = (GRID, "pixel_values") if GRID in batch else ()
    chosen = {
        name: tensor[list(rows), :width] if tensor.shape == batch["input_ids"].shape else tensor[list(rows)]
        for name, tensor in batch.items()
        if name not in by_patches
    }
    if GRID in batch:
        per_row = _pictures_per_row(batch)
        grids = batch[GRID].split(per_row)
        patches = batch["pixel_values"].split([int(grid.prod(dim=1).sum()) for grid in grids])
        chosen[GRID] = torch.cat([grids[row] for row in rows])
        chosen["pixel_values"] = torch.cat([patches[row] for row in rows])
    return chosen


def _pictures_per_row(batch: Mapping[str, Tensor]) -> list[int]:
    """Runs of picture tokens in each row."""
    marked = batch["mm_token_type_ids"]
    starts = (marked[:, 1:] > marked[:, :-1]).sum(dim=1) + (marked[:, 0] > 0)
    return [int(count) for count in starts]
