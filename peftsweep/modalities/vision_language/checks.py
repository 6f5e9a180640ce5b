"""Whether the rows of a task can be used, told before weights are loaded; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from peftsweep.modalities.vision_language.picture import open_picture
from peftsweep.modalities.vision_language.rows import build_source, pictures_of
from peftsweep.modalities.vision_language.scores import build_judging
from peftsweep.modalities.vision_language.settings import VqaConfig

TRIED_ROWS = 3  # of each split, whose own answers are judged
# Pictures of the user's files that are opened before anything else, a few milliseconds each; a later one that can't be
# read is told when it is met.
OPENED_PICTURES = 2000


def require_rows(config: VqaConfig, *, embedded_model: bool, splits: Sequence[str], hub: bool) -> None:
    """See `modalities.base.Modality.require_data`."""
    source, judging = build_source(config, embedded_model=embedded_model), build_judging(config)
    if source.name == "hub" and not hub:
        return
    for split in splits:
        rows = source.read(split)[: config.most_rows(split)]
        for row in rows[:TRIED_ROWS]:
            judging.judge(row, row.response)
        if source.name == "files":
            different = dict.fromkeys(picture for row in rows for picture in pictures_of(row))
            for picture in list(different)[:OPENED_PICTURES]:
                open_picture(picture)
