"""The metrics: one row each, which every writer and reader of a job's numbers goes by.

A new metric is a new row of METRICS: tables, limits, MLflow, report and `recommend` take what they need from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from peftsweep.config.units import COMMAND_LINE
from peftsweep.errors import ConfigError, DataError, Problem, did_you_mean


class Direction(StrEnum):
    HIGHER = "higher is better"
    LOWER = "lower is better"
    NEITHER = "neither"


Ends = tuple[float, float]
ANY: Ends = (-math.inf, math.inf)
NOT_NEGATIVE: Ends = (0.0, math.inf)
SHARE: Ends = (0.0, 1.0)
COSINE: Ends = (-1.0, 1.0)


@dataclass(frozen=True)
class Metric:
    """One key of result.json and MLflow, and how people meet it.

    label: its name in tables and figures. words: what it is called on the command line, parted by blanks; of several
    metrics with one word, the first that was measured answers. ends: between which it lies. is_score: methods are
    compared by it; the first score that was measured counts. column: its title among the costs of a report's table,
    shown when a job ends too; metrics with one title share the column. in_job_table: shown when a job ends.
    by_step_only: logged while a job trains, and not in result.json. unit: as the key's ending says; empty for shares.
    """

    key: str
    meaning: str
    label: str = ""
    words: str = ""
    direction: Direction = Direction.LOWER
    column: str = ""
    ends: Ends = NOT_NEGATIVE
    is_percent: bool = False
    is_score: bool = False
    in_job_table: bool = False
    by_step_only: bool = False
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or plain_name(self.key))
        object.__setattr__(self, "unit", self.unit or UNITS.get(self.key.rpartition("_")[2], ""))

    @property
    def higher_is_better(self) -> bool:
        return self.direction is Direction.HIGHER


UNITS = {"bytes": "bytes", "seconds": "s", "joules": "J", "nats": "nats", "params": "parameters"}  # of a key's ending


def plain_name(key: str) -> str:
    """The last part of a metric's or a setting's key, in words."""
    return re.split(r"[/.]", key)[-1].replace("_", " ")


def _on_items(
    name: str, measure: str, label: str, words: str = "", *, ends: Ends, is_percent: bool = False
) -> Iterator[Metric]:
    """A score on validation items, on test items, and on test items before training."""
    of_base, base_label = f"{measure} on test items, of the model before training", f"before training, {label}"
    row = Metric("", "", direction=Direction.HIGHER, ends=ends, is_percent=is_percent)
    yield replace(row, key=f"valid/{name}", meaning=f"{measure} on validation items", label=f"validation {label}")
    yield replace(row, key=f"test/{name}", meaning=f"{measure} on test items", label=label, words=words, is_score=True)
    yield replace(row, key=f"base/{name}", meaning=of_base, label=base_label)


LOSS = "nats per target token, or squared error of a diffusion model's velocity,"
HIGHER, NEITHER = Direction.HIGHER, Direction.NEITHER
# In the order in which tables show them.
# fmt: off
_ROWS: tuple[Metric, ...] = (
    Metric("train/loss", "loss of the last optimizer step's batch", "training loss"),
    Metric("train/lr", "learning rate", direction=NEITHER, by_step_only=True),
    Metric("train/grad_norm", "gradient norm before clipping", direction=NEITHER, by_step_only=True),
    Metric("train/skipped_steps", "steps whose gradient float16 could not hold", direction=NEITHER),
    *_on_items("accuracy", "share right, greedy decoding,", "accuracy", "accuracy", ends=SHARE, is_percent=True),
    *_on_items("score", "mean of the user's own scorer", "score", ends=ANY),
    *_on_items("exact_match", "share that equals its target", "exact match", ends=SHARE, is_percent=True),
    *_on_items("relaxed_accuracy", "share that equals its target, numbers within 5%", "relaxed accuracy", "accuracy",
               ends=SHARE, is_percent=True),
    *_on_items("anls", "mean likeness of answer and target by their letters", "ANLS", "anls", ends=SHARE),
    *_on_items("dino_similarity", "mean cosine of image embeddings", "DINO similarity", "similarity", ends=COSINE),
    *_on_items("entity_f1", "F1 of what tags span", "entity F1", "f1", ends=SHARE),
    *_on_items("f1_macro", "mean F1 of the classes", "macro F1", "f1", ends=SHARE),
    *_on_items("matthews", "Matthews correlation", "Matthews correlation", "matthews", ends=COSINE),
    *_on_items("spearman", "rank correlation of predicted and told numbers", "Spearman", "spearman", ends=COSINE),
    *_on_items("pearson", "correlation of predicted and told numbers", "Pearson", "pearson", ends=COSINE),
    Metric("valid/loss", f"{LOSS} on held-out rows or photos", "validation loss", in_job_table=True),
    Metric("test/loss", f"{LOSS} on test items", "test loss", "loss", in_job_table=True),
    Metric("base/loss", "test loss of the model before training", "before training, test loss"),
    Metric("forgetting_nats", "rise of the loss per token on general text; below 0 it fell",
           "forgetting", "forgetting", column="forgetting", ends=ANY),
    Metric("forgetting_caption_nats", "rise of the loss per token on captions of drawn pictures; below 0 it fell",
           "forgetting, captions", column="forgetting, captions", ends=ANY),
    Metric("forgetting_mlm_nats", "rise of the loss per hidden word of general text; below 0 it fell",
           "forgetting", "forgetting", column="forgetting", ends=ANY),
    Metric("feature_drift", "1 - cosine of an encoder's features of general text before and after training",
           "drift of features", "drift", column="drift", ends=(0.0, 2.0)),
    Metric("drift", "(1 - cosine)/2 of images of unrelated prompts with and without the adapter",
           words="drift", column="drift", ends=SHARE),
    Metric("test/memorised", "share of pictures nearer to a training photo than to their own",
           ends=SHARE, is_percent=True, in_job_table=True),
    Metric("base/memorised", "share of such pictures of the model before training",
           "before training, memorised", ends=SHARE, is_percent=True),
    Metric("test/text_similarity", "mean CLIP cosine of pictures and their test prompts",
           "fit of pictures and prompts", direction=HIGHER, ends=COSINE, in_job_table=True),
    Metric("base/text_similarity", "mean CLIP cosine of the model before training",
           "before training, fit of pictures and prompts", direction=HIGHER, ends=COSINE),
    Metric("memory/train_peak_reserved_bytes", "accelerator memory reserved, peak of training steps",
           "peak memory, training", "memory", column="memory"),
    Metric("memory/job_peak_reserved_bytes", "accelerator memory reserved, peak of the whole job",
           "peak memory, job", "memory", column="memory"),
    Metric("memory/job_peak_rss_bytes", "host memory of the process, peak of the whole job",
           "peak host memory", "memory", column="memory"),
    Metric("memory/train_peak_allocated_bytes", "accelerator memory allocated, peak of training steps",
           "peak memory allocated"),
    Metric("memory/train_reserved_avg_bytes", "accelerator memory reserved, mean over training steps"),
    Metric("memory/train_reserved_p99_bytes", "accelerator memory reserved, 99th percentile of steps"),
    Metric("plan/train_peak_bytes", "predicted accelerator memory of training",
           "peak memory, predicted for CUDA", "predicted", column="predicted"),
    Metric("time/setup_seconds", "loading, tokenising, measuring the base, attaching", "setup time", in_job_table=True),
    Metric("time/compile_seconds", "torch.compile, in whatever phase", "compilation time"),
    Metric("time/train_seconds", "optimisation steps alone", "training time", "time", column="training"),
    Metric("time/eval_seconds", "validation, test and forgetting after training began",
           "evaluation time", in_job_table=True),
    Metric("time/job_seconds", "whole job", "time of the whole job", in_job_table=True),
    Metric("time/step_median_seconds", "median optimisation step", "median time of a step"),
    Metric("train/tokens_per_second", "tokens fed to the model per second of training",
           "throughput", "throughput", HIGHER, "tokens/s", unit="tokens/s"),
    Metric("train/tokens", "tokens fed to the model in training, padding not counted",
           "training tokens", direction=NEITHER, unit="tokens"),
    Metric("adapter/trainable_params", "parameters that training changes",
           "trainable parameters", "params parameters", column="parameters"),
    Metric("adapter/head_params", "parameters of a task's own head, which every method trains", direction=NEITHER),
    Metric("adapter/total_params", "parameters of base and adapter", "all parameters", direction=NEITHER),
    Metric("adapter/file_bytes", "size of the saved adapter", "adapter size", "size", column="adapter"),
    Metric("energy/train_joules", "energy of the accelerator over training steps",
           "energy, training", "energy", column="energy"),
)
# fmt: on
METRICS: dict[str, Metric] = {row.key: row for row in _ROWS}


def score_keys() -> tuple[str, ...]:
    """What methods are compared by: the first that was measured."""
    return tuple(metric.key for metric in METRICS.values() if metric.is_score)


def metric_words() -> dict[str, tuple[str, ...]]:
    """A word for people -> the metrics that can answer it, the first that was measured."""
    found: dict[str, tuple[str, ...]] = {"score": score_keys()}
    for metric in METRICS.values():
        found |= {word: (*found.get(word, ()), metric.key) for word in metric.words.split()}
    return found


def cost_columns() -> dict[str, tuple[str, ...]]:
    """The costs in a report's table: title -> the metrics that it can mean, of which `first_measured` takes one."""
    found: dict[str, tuple[str, ...]] = {}
    for metric in METRICS.values():
        if metric.column:
            found[metric.column] = (*found.get(metric.column, ()), metric.key)
    return found


def candidates(name: str, source: str = COMMAND_LINE) -> tuple[str, ...]:
    """Keys of METRICS that a word or key can mean. Raises ConfigError for an unknown one, with the nearest.

    source: where the word was found, for the error.
    """
    words = metric_words()
    if name in words:
        return words[name]
    if name in METRICS:
        return (name,)
    fix = did_you_mean(name, [*words, *METRICS], listed=words)
    raise ConfigError(Problem("no metric has this name", name, source, fix))


def first_measured(keys: Sequence[str], measured: Iterable[Iterable[str]]) -> str | None:
    """One metric for all jobs or rows of a comparison: the first that all have, else that any has.

    measured: of each, the keys that it has. The peak of training and that of a whole job, or of host and device
    memory, are not to be compared: who lacks the metric that counts has not measured it.
    """
    sets = [set(keys_of_one) for keys_of_one in measured]
    return next((key for enough in (all, any) for key in keys if sets and enough(key in has for has in sets)), None)


def resolve(name: str, measured: Sequence[Iterable[str]]) -> str:
    """The one metric that a word means for all of several rows, as `first_measured` has it.

    Raises:
        ConfigError: there is no such metric.
        DataError: no row has it.
    """
    found = first_measured(candidates(name), measured)
    if found is None:
        known = ", ".join(sorted(set().union(*measured))) or "nothing"
        raise DataError(Problem(f"{name} must have been measured", fix=f"Measured were: {known}."))
    return found


def sign(key: str) -> int:
    """1 where higher is better, -1 where lower is. Raises ConfigError for a metric that is neither."""
    if METRICS[key].direction is Direction.NEITHER:
        rule = "a metric to compare by must have a better side"
        raise ConfigError(Problem(rule, key, COMMAND_LINE, "Choose one such as score, memory or time."))
    return 1 if METRICS[key].higher_is_better else -1


def within_ends(low: float, high: float, key: str) -> tuple[float, float]:
    """An interval without what the metric can't be. As the truth does not lie there either, it holds as often."""
    least, most = METRICS[key].ends
    return max(least, low), min(most, high)
