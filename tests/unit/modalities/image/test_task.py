"""The image task on the embedded pipeline, at four tokens a picture and one step: what is counted, kept and told."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peftsweep.config.schema import HparamsConfig, ModelConfig
from peftsweep.errors import ConfigError
from peftsweep.modalities.base import BaseModel, no_progress
from peftsweep.modalities.image import task as image_task
from peftsweep.modalities.image.generation import REFERENCE_DRIFT_PROMPTS
from peftsweep.modalities.image.modality import MODALITY
from peftsweep.modalities.image.pipeline import DiffusionParts
from peftsweep.modalities.image.settings import ImageGenConfig
from peftsweep.modalities.image.task import ImageTask, build_image_task
from peftsweep.modalities.loading import load_base

SPEC = ModelConfig("pocket-flux2", "image", "embedded", dtype="float32")
SMALL: dict[str, Any] = {
    "resolution": 32,
    "max_prompt_tokens": 8,
    "text_encoder_layers": [1, 2, 3],
    "inference_steps": 1,
    "guidance": 1.0,
    "valid_photos": 2,
    "test_photos": 2,
    "test_seeds": 2,
    "drift_prompts": ["a red ball"],
    "sample_prompts": ["sks toy on grass"],
}


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base(SPEC, torch.device("cpu"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def build(base: BaseModel, cache: Path) -> Callable[..., ImageTask]:
    def with_changes(cache: Path = cache, **changes: Any) -> ImageTask:
        config = ImageGenConfig(name="image-gen", **(SMALL | changes))
        return build_image_task(config, HparamsConfig(eval_batch_size=8), base, cache, no_progress)

    return with_changes


def refuse(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("was called")


def test_a_second_job_loads_neither_text_encoder_nor_vae(
    build: Callable[..., ImageTask], base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_batch() -> dict[str, torch.Tensor]:
        task = build(tmp_path)
        task.prepare(base.model)
        return dict(next(task.train_batches(2, 0)))

    before = first_batch()
    monkeypatch.setattr(DiffusionParts, "encode_prompts", refuse)
    monkeypatch.setattr(DiffusionParts, "encode_images", refuse)
    after = first_batch()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_text_encoder_is_loaded_once_for_a_whole_job(
    build: Callable[..., ImageTask], base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[str]] = []
    encode = DiffusionParts.encode_prompts

    def spy(parts: DiffusionParts, prompts: Sequence[str], **options: Any) -> torch.Tensor:
        asked.append(prompts)
        return encode(parts, prompts, **options)

    monkeypatch.setattr(DiffusionParts, "encode_prompts", spy)
    task = build(tmp_path)
    task.test_fingerprint()
    task.measure_retention(base.model)
    task.prepare(base.model)
    task.validate(base.model, whole=True)
    task.evaluate(base.model, "test")
    assert len(asked) == 1


def test_training_needs_no_encoding_after_prepare(
    build: Callable[..., ImageTask], base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = build(tmp_path)
    task.prepare(base.model)
    monkeypatch.setattr(DiffusionParts, "encode_prompts", refuse)
    monkeypatch.setattr(DiffusionParts, "encode_images", refuse)
    next(task.train_batches(2, 0))


def test_tokens_are_those_of_pictures_and_prompts(build: Callable[..., ImageTask]) -> None:
    task = build()
    batch = next(task.train_batches(3, 0))
    assert task.targets(batch) == 3
    assert task.tokens(batch) == 3 * (4 + 8)


def test_the_held_out_loss_repeats_and_draws_no_global_number(build: Callable[..., ImageTask], base: BaseModel) -> None:
    state = torch.get_rng_state()
    losses = [build(valid_seeds=0).validate(base.model, whole=True)["valid/loss"] for _ in range(2)]
    assert losses[0] == losses[1] > 0
    assert torch.equal(state, torch.get_rng_state())


def test_the_held_out_loss_is_the_same_whatever_density_is_trained_with(
    build: Callable[..., ImageTask], base: BaseModel
) -> None:
    settings: list[dict[str, Any]] = [{}, {"noise_density": "sigma_sqrt"}, {"noise_density": "logit_normal"}]
    losses = {build(valid_seeds=0, **one).validate(base.model, whole=True)["valid/loss"] for one in settings}
    assert len(losses) == 1


def test_sigma_sqrt_weights_the_loss_of_training(build: Callable[..., ImageTask], base: BaseModel) -> None:
    batch = next(build().train_batches(2, 0))
    with torch.no_grad():
        plain, weighted = (build(noise_density=name).loss(base.model, batch).sum for name in ("uniform", "sigma_sqrt"))
    assert weighted > plain


def test_without_validation_seeds_nothing_is_drawn_and_trials_are_judged_by_loss(
    build: Callable[..., ImageTask], base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiffusionParts, "generate", refuse)
    task = build(valid_seeds=0)
    assert MODALITY.objectives(ImageGenConfig(valid_seeds=0)) == ("valid/loss",)
    assert task.validate(base.model, whole=True).keys() == {"valid/loss"}
    assert task.samples() == {}


def test_samples_are_the_last_validations_pictures_one_a_prompt(
    build: Callable[..., ImageTask], base: BaseModel
) -> None:
    task = build(valid_seeds=2)
    assert set(MODALITY.objectives(ImageGenConfig(valid_seeds=2))) == task.validate(base.model, whole=True).keys()
    assert list(task.samples()) == task._split("valid").prompts
    assert all(picture.shape == (32, 32, 3) for picture in task.samples().values())


def test_validation_and_test_pictures_come_from_different_seeds(
    build: Callable[..., ImageTask], base: BaseModel
) -> None:
    task = build(valid_seeds=2)
    seeds = [{item["seed"] for item in task.evaluate(base.model, split).items} for split in ("valid", "test")]
    assert [len(found) for found in seeds] == [4, 4]
    assert not seeds[0] & seeds[1]


def test_pictures_of_the_test_are_kept_by_the_names_in_its_items(
    build: Callable[..., ImageTask], base: BaseModel
) -> None:
    evaluation = build().evaluate(base.model, "test")
    assert list(evaluation.images) == [*(item["image"] for item in evaluation.items), "sample-00"]
    assert evaluation.metrics.keys() == {"dino_similarity", "memorised", "loss"}
    assert evaluation.intervals.keys() == {"dino_similarity"}
    assert evaluation.generation_config["inference_steps"] == 1


def test_texts_are_compared_where_there_is_a_scorer(
    build: Callable[..., ImageTask], base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scorer:
        def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> list[float]:
            assert len(images) == len(texts) == 4
            return [0.1, 0.2, 0.3, 0.4]

    monkeypatch.setattr(image_task, "load_text_image_scorer", lambda choice, device: Scorer())
    task = build(clip_model="some/clip")
    evaluation = task.evaluate(base.model, "test")
    assert evaluation.metrics["text_similarity"] == pytest.approx(0.25)
    assert "text_similarity" in evaluation.intervals


def test_the_contact_sheet_has_a_row_a_prompt_and_leaves_out_a_base_that_was_not_drawn(
    build: Callable[..., ImageTask], base: BaseModel
) -> None:
    task = build()
    evaluation = task.evaluate(base.model, "test")
    with_base = task.pictures(evaluation, evaluation)["contact_sheet"]
    without = task.pictures(None, evaluation)["contact_sheet"]
    assert with_base.shape[1] > without.shape[1]
    assert with_base.shape[0] == without.shape[0] > 3 * 192


def test_prior_pictures_are_the_bare_bases_and_drawn_once(
    build: Callable[..., ImageTask], base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"prior_photos": 3, "prior_prompt": "a toy", "prior_weight": 0.5}
    batch = next(build(tmp_path, **settings).train_batches(2, 0))
    monkeypatch.setattr(DiffusionParts, "generate", refuse)
    task = build(tmp_path, **settings)
    again = next(task.train_batches(2, 0))
    assert torch.equal(batch["latents"], again["latents"])
    assert (task.targets(batch), task.tokens(batch)) == (2, 4 * (4 + 8))


def test_prior_pictures_add_the_weighted_mean_of_their_losses(build: Callable[..., ImageTask], base: BaseModel) -> None:
    task = build(prior_photos=3, prior_prompt="a toy", prior_weight=0.5)
    batch = next(task.train_batches(2, 0))
    parts = [{key: part[rows] for key, part in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    with torch.no_grad():
        whole = task.loss(base.model, batch)
        losses = [task._losses(base.model, part) for part in parts]
    assert whole.sum.item() == pytest.approx(losses[0].sum().item(), rel=1e-5)
    assert whole.auxiliary.item() == pytest.approx(0.5 * losses[1].mean().item(), rel=1e-5)


def test_without_prior_pictures_the_loss_has_nothing_beside_it(
    build: Callable[..., ImageTask], base: BaseModel
) -> None:
    task = build()
    assert task.loss(base.model, next(task.train_batches(2, 0))).auxiliary.item() == 0.0


def test_augmentation_trains_on_other_cuts_and_is_off_by_default(build: Callable[..., ImageTask]) -> None:
    def photos_seen(task: ImageTask) -> int:
        batches = islice(task.train_batches(14, 0), 6)
        return len({tuple(row.flatten().tolist()) for batch in batches for row in batch["latents"]})

    assert photos_seen(build()) == 14
    assert photos_seen(build(augment=True)) > 14


@pytest.mark.parametrize(("resolution", "nearest"), [(40, 32), (72, 64), (17, 16)])
def test_a_resolution_that_cuts_tokens_is_refused(
    build: Callable[..., ImageTask], resolution: int, nearest: int
) -> None:
    with pytest.raises(ConfigError, match=rf"multiple of 16.*got {resolution} .*task.resolution={nearest}"):
        build(resolution=resolution)


def test_prompts_beside_the_photos_are_the_worlds_or_the_references(base: BaseModel, tmp_path: Path) -> None:
    def prompts(is_embedded: bool) -> tuple[str, ...]:
        own = BaseModel(base.model, None, base.revision, is_embedded, base.parts)
        config = ImageGenConfig(name="image-gen", source="embedded", resolution=32)
        return build_image_task(config, HparamsConfig(), own, tmp_path, no_progress)._drift_prompts

    assert prompts(is_embedded=False) == REFERENCE_DRIFT_PROMPTS
    assert len(prompts(is_embedded=True)) == 10
    assert prompts(is_embedded=True) != prompts(is_embedded=False)
