"""The metrics: one row each, which every writer and reader of a job's numbers goes by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    HIGHER = "higher is better"
    LOWER = "lower is better"
    NEITHER = "neither"


@dataclass(frozen=True)
class Metric:
    """One key of result.json and MLflow. unit is empty for shares and counts."""

    name: str
    unit: str
    direction: Direction
    meaning: str
    by_step: bool = False


def _table(*rows: Metric) -> dict[str, Metric]:
    return {row.name: row for row in rows}


LOSS = "nats per target token, or squared error of a diffusion model's velocity,"

METRICS = _table(
    Metric("train/loss", "", Direction.LOWER, "loss of the last optimizer step's batch", by_step=True),
    Metric("train/lr", "", Direction.NEITHER, "learning rate", by_step=True),
    Metric("train/grad_norm", "", Direction.NEITHER, "gradient norm before clipping", by_step=True),
    Metric("train/tokens_per_second", "tokens/s", Direction.HIGHER, "tokens fed to the model per second of training"),
    Metric("train/tokens", "tokens", Direction.NEITHER, "tokens fed to the model in training, padding not counted"),
    Metric("valid/loss", "", Direction.LOWER, f"{LOSS} on held-out rows or photos", by_step=True),
    Metric("valid/accuracy", "", Direction.HIGHER, "share of validation items right, greedy decoding"),
    Metric("valid/exact_match", "", Direction.HIGHER, "share of validation items that equal their target"),
    Metric("valid/score", "", Direction.HIGHER, "mean of the user's own scorer on validation items"),
    Metric("test/accuracy", "", Direction.HIGHER, "share of test items right, greedy decoding"),
    Metric("test/exact_match", "", Direction.HIGHER, "share of test items that equal their target"),
    Metric("test/score", "", Direction.HIGHER, "mean of the user's own scorer on test items"),
    Metric("test/loss", "", Direction.LOWER, f"{LOSS} on test items"),
    Metric("base/accuracy", "", Direction.HIGHER, "test accuracy of the model before training"),
    Metric("base/exact_match", "", Direction.HIGHER, "test exact match of the model before training"),
    Metric("base/score", "", Direction.HIGHER, "test score of the model before training, by the user's own scorer"),
    Metric("base/loss", "", Direction.LOWER, "test loss of the model before training"),
    Metric(
        "valid/dino_similarity",
        "",
        Direction.HIGHER,
        "mean cosine of image embeddings on validation prompts",
        by_step=True,
    ),
    Metric("test/dino_similarity", "", Direction.HIGHER, "mean cosine of image embeddings on test prompts"),
    Metric("base/dino_similarity", "", Direction.HIGHER, "mean cosine on test prompts of the model before training"),
    Metric("test/memorised", "", Direction.LOWER, "share of pictures nearer to a training photo than to their own"),
    Metric("base/memorised", "", Direction.LOWER, "share of such pictures of the model before training"),
    Metric("test/text_similarity", "", Direction.HIGHER, "mean CLIP cosine of pictures and their test prompts"),
    Metric("base/text_similarity", "", Direction.HIGHER, "mean CLIP cosine of the model before training"),
    Metric("forgetting_nats", "nats", Direction.LOWER, "rise of the loss per token on general text"),
    Metric("drift", "", Direction.LOWER, "(1 - cosine)/2 of images of unrelated prompts with and without the adapter"),
    Metric(
        "memory/train_peak_reserved_bytes",
        "bytes",
        Direction.LOWER,
        "accelerator memory reserved, peak of training steps",
    ),
    Metric(
        "memory/train_peak_allocated_bytes",
        "bytes",
        Direction.LOWER,
        "accelerator memory allocated, peak of training steps",
    ),
    Metric(
        "memory/train_reserved_avg_bytes",
        "bytes",
        Direction.LOWER,
        "accelerator memory reserved, mean over training steps",
    ),
    Metric(
        "memory/train_reserved_p99_bytes",
        "bytes",
        Direction.LOWER,
        "accelerator memory reserved, 99th percentile of steps",
    ),
    Metric(
        "memory/job_peak_reserved_bytes", "bytes", Direction.LOWER, "accelerator memory reserved, peak of the whole job"
    ),
    Metric("memory/job_peak_rss_bytes", "bytes", Direction.LOWER, "host memory of the process, peak of the whole job"),
    Metric("time/setup_seconds", "s", Direction.LOWER, "loading, tokenising, measuring the base, attaching"),
    Metric("time/train_seconds", "s", Direction.LOWER, "optimisation steps alone"),
    Metric("time/eval_seconds", "s", Direction.LOWER, "validation, test and forgetting after training began"),
    Metric("time/job_seconds", "s", Direction.LOWER, "whole job"),
    Metric("time/step_median_seconds", "s", Direction.LOWER, "median optimisation step"),
    Metric("adapter/trainable_params", "parameters", Direction.LOWER, "parameters that training changes"),
    Metric("adapter/total_params", "parameters", Direction.NEITHER, "parameters of base and adapter"),
    Metric("adapter/file_bytes", "bytes", Direction.LOWER, "size of the saved adapter"),
    Metric("energy/train_joules", "J", Direction.LOWER, "energy of the accelerator over training steps"),
    Metric("plan/train_peak_bytes", "bytes", Direction.LOWER, "predicted accelerator memory of training"),
)

SCORES = ("test/accuracy", "test/score", "test/exact_match", "test/dino_similarity")  # the first measured is compared
# Between which ends a metric lies, by the last part of its key. All others are sizes, times, counts and losses.
ENDS = {
    "accuracy": (0.0, 1.0),
    "exact_match": (0.0, 1.0),
    "memorised": (0.0, 1.0),
    "drift": (0.0, 1.0),
    "dino_similarity": (-1.0, 1.0),
    "text_similarity": (-1.0, 1.0),
    "score": (-math.inf, math.inf),
    "forgetting_nats": (-math.inf, math.inf),  # training may well improve the loss on general text
}
NOT_NEGATIVE = (0.0, math.inf)


def within_ends(low: float, high: float, key: str) -> tuple[float, float]:
    """An interval without what the metric can't be. As the truth does not lie there either, it holds as often."""
    least, most = ENDS.get(key.rpartition("/")[2], NOT_NEGATIVE)
    return max(least, low), min(most, high)
