"""Pictures as a model is given them: processed once, and kept in memory while there is room. Where nothing changes the
vision tower, what it makes of them is kept in their place: most of the work that a picture is."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPooling

from peftsweep.modalities.vision_language.picture import Picture, open_picture
from peftsweep.modalities.wrapped import base_of, evaluating, on_device_of

KEPT_BYTES = 4 * 2**30  # of pictures as models are given them; the rest is processed anew each time it is met
GRID = "image_grid_thw"  # of models whose pictures are lists of patches of any length


SEEN = "mm_encoder_outputs"  # transformers' name for what was made of pictures already


class Seen(dict[str, Any]):
    """What a vision tower made of the pictures of some rows, one tensor (tokens, d) a row: goes where tensors go."""

    def __init__(self, rows: Sequence[Tensor]) -> None:
        super().__init__(image=BaseModelOutputWithPooling(pooler_output=rows))  # type: ignore[arg-type]

    @property
    def rows(self) -> Sequence[Tensor]:
        found: Sequence[Tensor] = self["image"].pooler_output
        return found

    def to(self, device: torch.device, non_blocking: bool = False) -> Seen:
        return Seen([row.to(device, non_blocking=non_blocking) for row in self.rows])


class PictureReader:
    """One processor's way with pictures, for the tasks of one job."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._kept_bytes = 0
        self._sizes: dict[str, tuple[int, int]] = {}
        self._ids_of_size = lru_cache(maxsize=None)(self._ids_of)
        self._looking: nn.Module | None = None  # whose tower stays as it is

    def look_with(self, model: nn.Module | None) -> None:
        """From now on keep what this model's tower makes of pictures; None: give the pictures themselves. What was kept
        so far stays good for any model with the same tower."""
        if (model is None) != (self._looking is None):
            self._kept, self._kept_bytes = {}, 0
        self._looking = model

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

    def _tensors(self, pictures: Iterable[Picture]) -> dict[str, dict[str, Tensor]]:
        """What the model is given for each, by the picture's name, then by its own; new ones are kept."""
        wanted = {picture.name: picture for picture in pictures}
        new = {name: self._processed(picture) for name, picture in wanted.items() if name not in self._kept}
        if new and self._looking is not None:
            new = dict(zip(new, _seen_by(self._looking, list(new.values())), strict=True))
        found = {name: new.get(name) or self._kept[name] for name in wanted}
        for name, tensors in new.items():
            size = sum(tensor.nbytes for tensor in tensors.values())
            if self._kept_bytes + size <= KEPT_BYTES:
                self._kept[name] = tensors
                self._kept_bytes += size
        return found

    def _processed(self, picture: Picture) -> dict[str, Tensor]:
        read = self.processor.image_processor(images=[[open_picture(picture)]], return_tensors="pt")
        return {name: tensor for name, tensor in read.items() if isinstance(tensor, Tensor)}

    def given(self, rows: Sequence[Sequence[Picture]], input_ids: Tensor) -> Mapping[str, Tensor]:
        """What a pass over rows of pictures is given. input_ids: (b, s), padded, in which they have their tokens.

        Pictures of patches stand one after the other, (patches, ...); others row by row, (b, tiles, ...), and rows with
        fewer tiles are filled with empty ones.
        """
        by_name = self._tensors(picture for pictures in rows for picture in pictures)
        each = [[by_name[picture.name] for picture in pictures] for pictures in rows]
        read = [tensors for row in each for tensors in row]
        if not read:
            return {}
        if SEEN in read[0]:
            return {SEEN: Seen([torch.cat([tensors[SEEN] for tensors in row]) for row in each])}  # type: ignore[dict-item]
        if GRID in read[0]:
            joined = {name: torch.cat([tensors[name] for tensors in read]) for name in read[0]}
            return {**joined, "mm_token_type_ids": (input_ids == self.image_token_id).int()}
        return {name: _stacked([[tensors[name] for tensors in row] for row in each]) for name in read[0]}


def can_look_once(model: nn.Module) -> bool:
    """Whether a bare model takes what its tower made of pictures in place of them."""
    inner = getattr(base_of(model), "model", None)
    if inner is None or not hasattr(inner, "vision_model"):
        return False
    return SEEN in inspect.signature(inner.forward).parameters


@torch.no_grad()
def _seen_by(model: nn.Module, pictures: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What the tower makes of each, (tokens, d), on the host."""
    together = {name: _stacked([[picture[name]] for picture in pictures]) for name in pictures[0]}
    with evaluating(model):
        made = base_of(model).model.get_image_features(**on_device_of(model, together), return_dict=True)
    return [{SEEN: of_picture.cpu()} for of_picture in made.pooler_output]


def _stacked(rows: Iterable[Sequence[Tensor]]) -> Tensor:
    """(b, tiles, ...) of rows of (1, tiles, ...)."""
    joined = [torch.cat(list(tensors), dim=1) for tensors in rows]
    most = max(tensor.shape[1] for tensor in joined)
    return torch.cat(
        [functional.pad(tensor, [0, 0] * (tensor.dim() - 2) + [0, most - tensor.shape[1]]) for tensor in joined]
    )


def rows_of_batch(batch: Mapping[str, Tensor], rows: Sequence[int], width: int) -> dict[str, Tensor]:
    """Some rows of a batch, their tokens cut to `width`; pictures of patches go with the row whose tokens they are."""
    apart = (GRID, "pixel_values") if GRID in batch else (SEEN,)
    chosen = {
        name: tensor[list(rows), :width] if tensor.shape == batch["input_ids"].shape else tensor[list(rows)]
        for name, tensor in batch.items()
        if name not in apart
    }
    if SEEN in batch:
        seen: Any = batch[SEEN]
        chosen[SEEN] = Seen([seen.rows[row] for row in rows])  # type: ignore[assignment]
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
