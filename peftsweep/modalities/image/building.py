"""A new concept from a handful of photos: train on some, draw the prompts of the others, compare with the photos.

    "sks bear plushie sitting on grey asphalt"  ->  three pictures  ->  their cosines to the photo with that prompt

Loss, split, similarity and drift are the reference benchmark's. What differs: several seeds a prompt, the same for
every job; an interval; drift measured for full fine-tuning too.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from peftsweep.config.schema import HparamsConfig, ImageGenConfig
from peftsweep.errors import ConfigError, Problem
from peftsweep.modalities.base import Progress
from peftsweep.modalities.base_model import BaseModel
from peftsweep.modalities.image import reference_prompts
from peftsweep.modalities.image.encoders import POCKET, load_image_encoder, load_text_image_scorer
from peftsweep.modalities.image.photos import PhotoSource, build_source
from peftsweep.modalities.image.pocket import world as image_world
from peftsweep.modalities.image.task import ImageSettings, ImageTask

log = logging.getLogger(__name__)

REFERENCE_ENCODER = "facebook/dinov2-base"


def build_image_gen(
    config: ImageGenConfig, hparams: HparamsConfig, base: BaseModel, cache: Path, progress: Progress
) -> ImageTask:
    """Raises ConfigError, or DataError where the photos can't be found or split."""
    source = build_source(config, embedded_model=base.is_embedded)
    log.info("Task %s: photos from %s.", config.name, source.name)
    device = next(base.model.parameters()).device
    encoder = config.encoder
    if encoder == "auto":
        encoder = POCKET if base.is_embedded else REFERENCE_ENCODER
    load_scorer = partial(load_text_image_scorer, config.clip_model, device) if config.clip_model else None
    settings = _settings(config, hparams, base, source, cache)
    load_encoder = partial(load_image_encoder, encoder, device)
    return ImageTask(config.name, source, base, load_encoder, load_scorer, settings, progress)


def _settings(
    config: ImageGenConfig, hparams: HparamsConfig, base: BaseModel, source: PhotoSource, cache: Path
) -> ImageSettings:
    if config.prior_photos and not config.prior_prompt:
        rule = "task.prior_photos needs task.prior_prompt, the class that the concept is one of"
        fix = "Give task.prior_prompt, 'a photo of a cat' for example."
        raise ConfigError(Problem(rule, config.prior_photos, "task.prior_photos", fix))
    drift = image_world.DRIFT_PROMPTS if base.is_embedded else reference_prompts.DRIFT_PROMPTS
    samples = {"embedded": image_world.SAMPLE_PROMPTS, "hub": reference_prompts.SAMPLE_PROMPTS}.get(source.name, ())
    return ImageSettings(
        generation=config,
        density=config,
        augment=config.augment,
        prior_photos=config.prior_photos,
        prior_prompt=config.prior_prompt or "",
        prior_weight=config.prior_weight,
        valid_seeds=config.valid_seeds,
        test_seeds=config.test_seeds,
        drift_prompts=tuple(drift if config.drift_prompts is None else config.drift_prompts),
        drift_seeds=config.drift_seeds,
        sample_prompts=tuple(samples if config.sample_prompts is None else config.sample_prompts),
        clip_model=config.clip_model,
        eval_batch_size=hparams.eval_batch_size,
        cache=cache,
    )
