"""The tasks, by name: what a new one has to add is a row here, a dataclass in config.py and a YAML."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from peftsweep.config.schema import (
    HparamsConfig,
    ImageGenConfig,
    MetamathConfig,
    SftConfig,
    TaskConfig,
    TextTaskConfig,
)
from peftsweep.modalities.base import Progress, Task, no_progress
from peftsweep.modalities.base_model import BaseModel
from peftsweep.modalities.image.photos import build_source
from peftsweep.modalities.text import metamath, sft
from peftsweep.modalities.text.general import build_general_texts
from peftsweep.modalities.text.rows import Source
from peftsweep.modalities.text.task import Judging, TextSettings, TextTask
from peftsweep.modalities.text.tokens import PromptFormat

log = logging.getLogger(__name__)


def build_task(
    config: TaskConfig, hparams: HparamsConfig, base: BaseModel, cache: Path, progress: Progress = no_progress
) -> Task:
    """The task of a job, on a loaded base model. Reads no rows yet."""
    return TASK_BUILDERS[config.name](config, hparams, base, cache, progress)


def require_data(config: TaskConfig, *, embedded_model: bool) -> None:
    """Raise DataError for data that is known to be unusable before a model is loaded and the rows are read."""
    if isinstance(config, ImageGenConfig):
        build_source(config, embedded_model=embedded_model)


def _build_metamath(
    config: TaskConfig, hparams: HparamsConfig, base: BaseModel, cache: Path, progress: Progress
) -> Task:
    assert isinstance(config, MetamathConfig)
    source = metamath.build_source(config, embedded_model=base.is_embedded)
    judging = Judging(metamath.judge, metamath.JUDGE_KEY, metamath.VERSION, metamath.SCORE)
    return _text_task(config, hparams, base, cache, progress, source, judging)


def _build_sft(config: TaskConfig, hparams: HparamsConfig, base: BaseModel, cache: Path, progress: Progress) -> Task:
    assert isinstance(config, SftConfig)
    score = "score" if config.scorer else "exact_match"
    judging = Judging(
        sft.build_judge(sft.load_scorer(config.scorer)), sft.scorer_key(config.scorer), sft.VERSION, score
    )
    source = sft.build_source(config, embedded_model=base.is_embedded)
    return _text_task(config, hparams, base, cache, progress, source, judging)


def _build_image_gen(
    config: TaskConfig, hparams: HparamsConfig, base: BaseModel, cache: Path, progress: Progress
) -> Task:
    from peftsweep.modalities.image.building import build_image_gen  # a text job is spared the import of diffusers

    assert isinstance(config, ImageGenConfig)
    return build_image_gen(config, hparams, base, cache, progress)


def _text_task(
    config: TextTaskConfig,
    hparams: HparamsConfig,
    base: BaseModel,
    cache: Path,
    progress: Progress,
    source: Source,
    judging: Judging,
) -> TextTask:
    log.info("Task %s: rows from %s.", config.name, source.name)
    settings = TextSettings(
        prompt_format=PromptFormat(config.template, hparams.max_seq_length, config.loss_on == "all"),
        train_rows=config.train_rows,
        test_rows=config.test_rows,
        max_new_tokens=config.max_new_tokens,
        bucket_batches=hparams.bucket_batches,
        eval_batch_size=hparams.eval_batch_size,
        fused_loss=hparams.fused_loss,
        cache=cache,
    )
    general = build_general_texts(
        config.general_text, config.general_rows, embedded_model=base.is_embedded, hub=source.name == "hub"
    )
    return TextTask(config.name, source, judging, general, base, settings, progress)


TASK_BUILDERS: dict[str, Callable[[TaskConfig, HparamsConfig, BaseModel, Path, Progress], Task]] = {
    "metamath": _build_metamath,
    "sft": _build_sft,
    "image-gen": _build_image_gen,
}
