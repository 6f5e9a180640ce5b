"""What one can choose of vision-language models and their tasks, and what of it can't go together. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from peftsweep.config.schema import ModelConfig, number, one_of
from peftsweep.errors import Problem
from peftsweep.modalities.text.settings import TextTaskConfig, source_problems

ADAPT = ("language", "language+connector", "all")
SCORES = ("exact_match", "relaxed_accuracy", "anls")


@dataclass
class VlmConfig(ModelConfig):
    """A language model that is shown pictures."""

    # What methods are put on, and full fine-tuning changes; the connector joins the vision tower to the language model.
    adapt: str = one_of("language", ADAPT)


@dataclass
class VqaConfig(TextTaskConfig):
    """A picture, or several, with a question and its answer."""

    modality: str = "vision_language"
    image_column: str | None = None  # paths; null: the first known name (image, file_name, images, ...)
    dataset: str | None = None  # of the hub, where no files are given
    subset: str | None = None  # of that dataset
    train_split: str = "train"  # of that dataset; validation rows are held out of it
    test_split: str = "test"  # of that dataset
    judge: str = one_of("exact_match", SCORES)
    # "module:function" of (question, target, generated) -> float
    scorer: str | None = field(default=None, metadata={"runs_code": True})
    max_new_tokens: int = number(32, low=1)  # longest answer that evaluation waits for
    general_pictures: int = number(50, low=0)  # drawn; forgetting is measured on their captions too; 0: it is not


def question_problems(task: VqaConfig) -> Iterator[Problem]:
    """What doesn't go together in the settings of a task on pictures."""
    yield from source_problems(task)
    if task.loss_on != "response":
        rule = "task.loss_on must be response: the tokens that stand for a picture can't be learnt"
        yield Problem(rule, task.loss_on)
    if "{prompt}" not in task.template:
        yield Problem("task.template must hold {prompt}, where the question stands", task.template)
