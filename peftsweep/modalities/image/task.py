"""A new concept from a handful of photos: train on some, draw the prompts of the others, compare with the photos.

    "sks bear plushie sitting on grey asphalt"  ->  three pictures  ->  their cosines to the photo with that prompt

Loss, split, similarity and drift are the reference benchmark's. What differs: several seeds a prompt, the same for
every job; an interval; drift measured for full fine-tuning too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from peftsweep.config.schema import HparamsConfig
from peftsweep.errors import ConfigError, Problem
from peftsweep.modalities.base import BaseModel, Batch, BatchLoss, DatasetInfo, Evaluation, Progress, no_progress
from peftsweep.modalities.cached_tensors import key_of
from peftsweep.modalities.image.contact_sheet import draw_contact_sheet
from peftsweep.modalities.image.encoders import POCKET, ImageEncoder, load_image_encoder, load_text_image_scorer
from peftsweep.modalities.image.encodings import EncodedPhotos, Encodings
from peftsweep.modalities.image.flow import (
    TrainingSet,
    add_noise,
    flow_losses,
    held_out_batches,
    lengths_of_photos,
    loss_weights,
    photos_of,
    tokens_of_picture,
    total_loss,
    training_batches,
)
from peftsweep.modalities.image.generation import (
    NO_PROMPT,
    REFERENCE_DRIFT_PROMPTS,
    REFERENCE_SAMPLE_PROMPTS,
    generation_settings,
    prior_pictures,
    repeated,
    seeds_of,
)
from peftsweep.modalities.image.photos import PhotoSource, build_source, digest_of_photos, random_squares
from peftsweep.modalities.image.pipeline import predict_velocity
from peftsweep.modalities.image.pocket import world as image_world
from peftsweep.modalities.image.scores import SCORE, Scored, file_stem, mean_drift, paired_cosines, score_pictures
from peftsweep.modalities.image.settings import ImageGenConfig
from peftsweep.modalities.wrapped import evaluating, on_device_of
from peftsweep.ranks import world

log = logging.getLogger(__name__)

VERSION = 1
REFERENCE_ENCODER = "facebook/dinov2-base"
VARIANTS = 8  # squares cut out of each training photo with task.augment, half of them mirrored
SHEET_PHOTOS = 12  # of the test split, in the contact sheet


class ImageTask:
    """Implements modalities.base.Task for a concept that photos show."""

    version = VERSION
    score = SCORE

    def __init__(
        self,
        config: ImageGenConfig,
        hparams: HparamsConfig,
        source: PhotoSource,
        base: BaseModel,
        cache: Path,
        progress: Progress = no_progress,
    ) -> None:
        self.name = config.name
        self._config, self._hparams, self._source = config, hparams, source
        self._parts, self._cache, self._progress = base.parts, cache, progress
        self._device = next(base.model.parameters()).device
        per_token = self._parts.pixels_per_token
        if config.resolution % per_token:
            rule = f"task.resolution must be a multiple of {per_token}, the pixels of a latent token"
            fix = f"Take task.resolution={max(per_token, round(config.resolution / per_token) * per_token)}."
            raise ConfigError(Problem(rule, config.resolution, "task.resolution", fix))
        drift = image_world.DRIFT_PROMPTS if base.is_embedded else REFERENCE_DRIFT_PROMPTS
        samples = {"embedded": image_world.SAMPLE_PROMPTS, "hub": REFERENCE_SAMPLE_PROMPTS}
        self._drift_prompts = tuple(drift if config.drift_prompts is None else config.drift_prompts)
        self._sample_prompts = tuple(
            samples.get(source.name, ()) if config.sample_prompts is None else config.sample_prompts
        )
        self._encoder_name = config.encoder
        if config.encoder == "auto":
            self._encoder_name = POCKET if base.is_embedded else REFERENCE_ENCODER
        options = {"max_tokens": config.max_prompt_tokens, "layers": list(config.text_encoder_layers)}
        self._encodings = Encodings(self._parts, cache, options)
        self._splits: dict[str, EncodedPhotos] = {}
        self._samples: dict[str, np.ndarray] = {}
        self._prior: np.ndarray | None = None
        if config.prior_photos:  # drawn by the bare base: later there is a method on it
            self._prior = prior_pictures(partial(self._draw, base.model), base, config, cache)

    @cached_property
    def _encoder(self) -> ImageEncoder:
        return load_image_encoder(self._encoder_name, self._device)

    def datasets(self) -> list[DatasetInfo]:
        return [
            DatasetInfo(self.name, name, self._source.name, digest_of_photos(split.photos), len(split.photos))
            for name, split in self._splits.items()
        ]

    def _split(self, name: str) -> EncodedPhotos:
        if name not in self._splits:
            self._splits[name] = EncodedPhotos(self._source.open(name), self._encodings, lambda: self._encoder)
        return self._splits[name]

    def _learn_prompts(self) -> None:
        """Have all prompts encoded that this job is known to need, so that the text encoder is loaded once."""
        prompts = [NO_PROMPT, *self._drift_prompts, *self._split("train").prompts, *self._split("valid").prompts]
        if self._config.prior_photos:
            prompts.append(self._config.prior_prompt or "")
        if "test" in self._splits:
            prompts += [*self._split("test").prompts, *self._sample_prompts]
        self._encodings.learn_prompts(prompts)

    def add_heads(self, model: nn.Module) -> tuple[str, ...]:
        return ()

    def prepare(self, model: nn.Module) -> None:
        """Photos and prompts are encoded here, before training is timed and its memory measured; the first samples are
        drawn, to be seen beside later ones."""
        _ = self._training_set, self._split("valid").latents
        if self._config.valid_seeds:
            self._draw_valid(model)

    @cached_property
    def _training_set(self) -> TrainingSet:
        self._learn_prompts()
        split = self._split("train")
        latents = split.latents.unsqueeze(1)  # (n, v, c, h, w)
        if self._config.augment:
            cut = [random_squares(photo.pixels, VARIANTS, seed) for seed, photo in enumerate(split.photos)]
            latents = self._encodings.of_pictures(np.concatenate(cut)).unflatten(0, (len(cut), VARIANTS))
        return TrainingSet(
            latents,
            self._encodings.of_prompts(split.prompts),
            None if self._prior is None else self._encodings.of_pictures(self._prior),
            None if self._prior is None else self._encodings.of_prompts([self._config.prior_prompt or ""]),
        )

    def train_batches(self, batch_size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """See modalities.base.Task. Also opens the validation photos, so that unusable ones end a job before its first
        step."""
        self._split("valid")
        yield from training_batches(self._training_set, batch_size, self._config, self._parts.sigmas, seed, skip)

    def targets(self, batch: Batch) -> int:
        """Photos; prior pictures are no targets."""
        return len(batch["latents"]) - (int(batch["is_prior"].sum()) if "is_prior" in batch else 0)

    def tokens(self, batch: Batch) -> int:
        return len(batch["latents"]) * tokens_of_picture(batch)

    def lengths(self, batch: Batch) -> list[int]:
        return lengths_of_photos(batch)

    def rows(self, batch: Batch, which: Sequence[int]) -> Batch:
        return photos_of(batch, which)

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        """See modalities.base.Task. Prior pictures add the weighted mean of their losses."""
        batch = on_device_of(model, batch)
        losses = self._losses(model, batch) * loss_weights(self._config, batch["sigmas"])
        return total_loss(losses, batch, self._config.prior_weight)

    def _losses(self, model: nn.Module, batch: Batch) -> Tensor:
        noisy = add_noise(batch["latents"], batch["noise"], batch["sigmas"])
        velocity = predict_velocity(model, noisy, batch["sigmas"], batch["prompt_embeds"], self._parts.dtype)
        return flow_losses(velocity, batch["latents"], batch["noise"])

    @torch.no_grad()
    def _held_out_loss(self, model: nn.Module, name: str) -> float:
        """Mean over photos, noise levels and noises, which never change; unweighted."""
        split = self._split(name)
        self._learn_prompts()
        batches = held_out_batches(
            split.latents,
            self._encodings.of_prompts(split.prompts),
            self._parts.sigmas,
            self._hparams.eval_batch_size,
        )
        with evaluating(model):
            losses = [self._losses(model, on_device_of(model, one)).cpu() for one in world.own(list(batches))]
        return float(torch.cat(world.collected(losses)).mean())

    def _draw(self, model: nn.Module, prompts: Sequence[str], seeds: Sequence[int], doing: str = "") -> np.ndarray:
        """uint8 (n, r, r, 3): picture i is of prompts[i], from the noise of seeds[i], whatever method is on the model.

        doing: what the progress display says; without it there is none.
        """
        self._learn_prompts()
        progress, own_prompts = self._progress if doing else no_progress, world.own(prompts)
        with progress(doing, len(own_prompts)) as advance:
            drawn = self._parts.generate(
                model,
                self._encodings.of_prompts(own_prompts),
                self._encodings.of_prompts([NO_PROMPT]),
                world.own(seeds),
                resolution=self._config.resolution,
                steps=self._config.inference_steps,
                guidance=self._config.guidance,
                batch_size=self._hparams.eval_batch_size,
                on_done=advance,
            )
        return np.stack(world.collected(list(drawn)))

    def validate(self, model: nn.Module, *, whole: bool) -> dict[str, float]:
        metrics = {"valid/loss": self._held_out_loss(model, "valid")}
        each, split = self._config.valid_seeds, self._split("valid")
        if each:
            drawn = self._draw_valid(model)
            photos = split.embeddings.repeat_interleave(each, dim=0)
            metrics[f"valid/{SCORE}"] = float(paired_cosines(self._encoder.embed(list(drawn)), photos).mean())
        return metrics

    def _draw_valid(self, model: nn.Module) -> np.ndarray:
        """Pictures of the validation prompts, those of a prompt together; the first of each is a sample."""
        each, prompts = self._config.valid_seeds, self._split("valid").prompts
        drawn = self._draw(model, repeated(prompts, each), seeds_of("valid", len(prompts), each))
        self._samples = dict(zip(prompts, drawn[::each], strict=True))
        return drawn

    def samples(self) -> dict[str, np.ndarray]:
        """See modalities.base.Task: a picture of each validation prompt."""
        return self._samples

    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        """See modalities.base.Task. With the test split come pictures of the sample prompts, which are not judged."""
        held_out = self._split(split)
        each = self._config.test_seeds if split == "test" else max(1, self._config.valid_seeds)
        samples = self._sample_prompts if split == "test" else ()
        prompts = [*repeated(held_out.prompts, each), *samples]
        seeds = seeds_of(split, len(held_out.prompts), each)
        drawn = self._draw(model, prompts, seeds + seeds_of("sample", len(samples), 1), f"drawing {split} pictures")
        judged, unjudged = drawn[: len(seeds)], drawn[len(seeds) :]
        scored = self._score(held_out, seeds, list(judged))
        images = {item["image"]: picture for item, picture in zip(scored.items, judged, strict=True)}
        images |= {_sample_stem(number): picture for number, picture in enumerate(unjudged)}
        metrics = scored.metrics() | {"loss": self._held_out_loss(model, split)}
        return Evaluation(metrics, scored.intervals(), scored.items, generation_settings(self._config), images)

    def _score(self, held_out: EncodedPhotos, seeds: Sequence[int], pictures: Sequence[np.ndarray]) -> Scored:
        prompts, clip = repeated(held_out.prompts, len(seeds) // len(held_out.prompts)), self._config.clip_model
        return score_pictures(
            held_out.photos,
            seeds,
            self._encoder.embed(pictures),
            held_out.embeddings,
            self._split("train").embeddings,
            load_text_image_scorer(clip, self._device).score(pictures, prompts) if clip else None,
        )

    def pictures(self, before: Evaluation | None, after: Evaluation) -> dict[str, np.ndarray]:
        """See modalities.base.Task: test and sample prompts as the base drew them, with the method, and the photos."""
        test = self._split("test")
        photos = {file_stem(number, 0): square for number, square in enumerate(test.squares[:SHEET_PHOTOS])}
        captions = dict(zip(photos, test.prompts, strict=False))
        captions |= {_sample_stem(number): prompt for number, prompt in enumerate(self._sample_prompts)}
        base = {"base": before.images} if before and before.images else {}
        return {"contact_sheet": draw_contact_sheet(captions, base | {"adapted": after.images, "photo": photos})}

    def test_fingerprint(self) -> str:
        """See modalities.base.Task. Training photos belong to it: what is memorised is told by them."""
        photos = [digest_of_photos(self._split(name).photos) for name in ("test", "train")]
        judges = [self._encoder.name, self._encoder.revision, self._config.clip_model]
        return key_of(self.name, VERSION, photos, self._config.test_seeds, generation_settings(self._config), judges)

    def retention_key(self) -> str:
        judge = [self._encoder.name, self._encoder.revision]
        return key_of(self._drift_prompts, self._config.drift_seeds, generation_settings(self._config), judge)

    def measure_retention(self, model: nn.Module) -> Tensor | None:
        """(n, d): how pictures of unrelated prompts look; None where there are no such prompts."""
        prompts, each = self._drift_prompts, self._config.drift_seeds
        if not prompts:
            return None
        seeds = seeds_of("drift", len(prompts), each)
        return self._encoder.embed(
            list(self._draw(model, repeated(prompts, each), seeds, "drawing unrelated pictures"))
        )

    def compare_retention(self, before: Tensor | None, after: Tensor | None) -> dict[str, float]:
        return {} if before is None or after is None else {"drift": mean_drift(before, after)}


def _sample_stem(number: int) -> str:
    return f"sample-{number:02d}"


def build_image_task(
    config: ImageGenConfig, hparams: HparamsConfig, base: BaseModel, cache: Path, progress: Progress = no_progress
) -> ImageTask:
    """See `modalities.base.Modality.build_task`. Raises DataError where the photos can't be found or split."""
    source = build_source(config, embedded_model=base.is_embedded)
    log.info("Task %s: photos from %s.", config.name, source.name)
    return ImageTask(config, hparams, source, base, cache, progress)
