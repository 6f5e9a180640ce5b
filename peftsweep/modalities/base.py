"""The contract of a modality: one kind of model with its tasks. A new one is a folder beside this file, and a line of
`config/registry.py`.

The job, the loop, sweeps, plans and reports know what stands here and nothing else. Importing a folder's `modality`
imports no torch; what the methods need is imported when they are called.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from peftsweep.config.registry import ModalitySettings, find_modality
from peftsweep.config.schema import HparamsConfig, JobConfig, ModelConfig, TaskConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from rich.console import RenderableType
    from torch import Tensor, nn

SPLITS = ("train", "valid", "test")
Batch = Mapping[str, "Tensor"]
# (what is being done, how many) -> a context whose value is called with the number done since its last call
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def no_progress(description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda done: None)


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model: frozen, in eval mode.

    model: what methods are put on; tokenizer: None for models that read no text themselves; revision: the hub's commit,
    or a fingerprint of local weights; parts: what stands around the model and is not trained (text encoder, VAE), an
    object whose `on(device)` answers the same parts, working there; processor: of models that read more than text; it
    holds their tokenizer.
    """

    model: nn.Module
    tokenizer: Any
    revision: str
    is_embedded: bool
    parts: Any = None
    processor: Any = None


@dataclass(frozen=True)
class Skeleton:
    """A base model without weights. model: on the meta device, in the dtype that its layers compute in; source: where
    its sizes come from, in words; config: the model's own configuration as plain data; heads: names of the modules that
    a task adds, see Task.add_heads."""

    model: nn.Module
    source: str
    config: dict[str, Any]
    heads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Length:
    """Of the longest row that training meets, which decides the peak of memory. source: where it is from, in words."""

    tokens: int
    source: str


class TrainableTask(Protocol):
    """The part of a task that the training loop sees."""

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        """batch: on the host, from where it is brought to the model, or there already."""
        ...

    def targets(self, batch: Batch) -> int:
        """How many targets (tokens, images) the loss of a batch sums over."""
        ...

    def tokens(self, batch: Batch) -> int:
        """What a batch feeds to the model, padding not counted: the unit of budgets."""
        ...

    def lengths(self, batch: Batch) -> list[int]:
        """Tokens of each row of a batch, padding not counted. A row is what can be put through by itself."""
        ...

    def rows(self, batch: Batch, which: Sequence[int]) -> Batch:
        """Some rows of a batch, by their numbers: their losses sum up to that of the whole."""
        ...


class PlannedStep(TrainableTask, Protocol):
    """A training step as a plan traces it: what the loop asks of a task, and the batch on the host that takes most."""

    @property
    def batch(self) -> Batch: ...


class Modality(ModalitySettings):
    """Everything that is known of one kind of model: what `config.registry.ModalitySettings` declares, and this."""

    library: ClassVar[str]  # what loads a merged model: transformers, diffusers
    index_file: ClassVar[str]  # the file that tells a folder of such a model
    embedded_models: ClassVar[Mapping[str, Path]]  # name -> folder of those that ship with this package

    def peft_task_type(self, model: ModelConfig) -> str | None:
        """A member of peft.TaskType; None: peft has none for such models."""
        return None

    @abstractmethod
    def load(self, model: ModelConfig, location: str, device: torch.device) -> BaseModel:
        """Read weights. location: a folder or a hub id; device: where quantised weights are placed, others are left on
        the host. Raises ModelError, see `modalities.loading.load_base`, which also checks and places what is loaded."""

    @abstractmethod
    def build_skeleton(self, model: ModelConfig, dtype: torch.dtype, *, one_of_each: bool) -> Skeleton:
        """The architecture alone, called with the meta device as default. one_of_each: a single block of each kind.
        Raises ModelError where no configuration is at hand."""

    def adapted(self, model: ModelConfig) -> str:
        """Which parts of the model methods may change, as `methods.targets.PARTS` names them; all of it for most."""
        return "all"

    def require_data(self, task: TaskConfig, *, embedded_model: bool, splits: Sequence[str], hub: bool) -> None:
        """Read these splits, and try on some rows whoever judges answers. hub: also what must be downloaded. Imports no
        torch. Raises DataError or ConfigError, before weights are loaded, for what can't be used."""
        return

    def preview(self, job: JobConfig, rows: int) -> Iterator[RenderableType]:
        """What training and judging read, for a person to look at: the splits, then so many rows of each as the model
        sees them. Loads no weights. Raises DataError or ModelError."""
        yield from ()

    @abstractmethod
    def build_task(
        self, task: TaskConfig, hparams: HparamsConfig, base: BaseModel, cache: Path, progress: Progress = no_progress
    ) -> Task:
        """The task of a job, on a loaded base model. Reads no rows yet. Raises ConfigError or DataError."""

    def give_head(self, base: BaseModel, classes: Sequence[str]) -> None:
        """A head as a task adds it (Task.add_heads), for these classes, or a number where there are none: trained
        weights are read into it. Of modalities whose tasks add heads."""
        raise NotImplementedError

    @abstractmethod
    def longest_row(
        self, model: ModelConfig, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, cache: Path
    ) -> Length:
        """Of the training data where they are on this machine, else the most that the settings allow."""

    @abstractmethod
    def planned_step(
        self, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, rows: int, tokens: int
    ) -> PlannedStep:
        """The step of a batch of `rows` rows of `tokens` tokens, with the task's own loss. Called with the meta device
        as default; skeleton: with the method on its model."""

    def evaluation_passes(
        self, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, rows: int, tokens: int
    ) -> Sequence[Callable[[nn.Module], object]]:
        """What evaluation does with `rows` rows of `tokens` tokens at a time, each pass to be traced by itself; else as
        `planned_step`."""
        step = self.planned_step(task, hparams, skeleton, rows, tokens)
        return [lambda model: step.loss(model, step.batch)]


def modality_of(config: ModelConfig | TaskConfig) -> Modality:
    """The whole contract of a model's or a task's modality. Raises ConfigError if there is none of its name."""
    return cast(Modality, find_modality(config.modality))


@dataclass(frozen=True)
class BatchLoss:
    """Loss of one forward pass, as sums, so that accumulated batches of different size weigh right.

    sum: scalar tensor, over all targets of the batch; auxiliary: scalar tensor that the method adds to the mean loss.
    """

    sum: Tensor
    auxiliary: Tensor


@dataclass(frozen=True)
class DatasetInfo:
    """What the tracker shows of the rows of one split."""

    name: str
    split: str
    source: str
    digest: str  # fingerprint of the rows, in order
    rows: int


@dataclass(frozen=True)
class Evaluation:
    """Scores of one split: metrics without their `valid/` or `test/` prefix, their 95% intervals, one record per
    item, and the pictures that were judged: name -> uint8 (h, w, 3)."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    generation_config: dict[str, Any] = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)


class Task(TrainableTask, Protocol):
    """Everything a job needs to know of what is taught and how it is judged."""

    name: str
    version: int  # raised when a score of the same answers would change
    score: str  # key of Evaluation.metrics that people compare: accuracy, dino_similarity, ...

    def datasets(self) -> list[DatasetInfo]:
        """The splits read so far; the test split appears once it has been read."""

    def train_batches(self, batch_size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Endless batches on the host, every row once an epoch, in an order that follows the seed; `skip` batches are
        left out."""

    def add_heads(self, model: nn.Module) -> tuple[str, ...]:
        """Draw what the task adds to the base model and every method trains, once the seed is set and before a method
        is attached; answer the names of these modules. None for most."""

    def prepare(self, model: nn.Module) -> None:
        """Called once when the method is attached, before the first loss."""

    def validate(self, model: nn.Module, *, whole: bool) -> dict[str, float]:
        """Cheap metrics on held-out data, `valid/loss` among them. Never reads test data. whole: after the last step;
        before it a part of the rows may do, the same each time and for every job."""

    def samples(self) -> dict[str, np.ndarray]:
        """Pictures that the last validation made, or `prepare` before the first, by caption; uint8 (h, w, 3). None for
        text."""

    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        """Full scores on `valid` or `test`. Reads the test split when asked for it, not before."""

    def pictures(self, before: Evaluation | None, after: Evaluation) -> dict[str, np.ndarray]:
        """What a person should look at when the test split was judged, before training (where it was) and after it:
        name -> uint8 (h, w, 3). None for text."""

    def test_fingerprint(self) -> str:
        """Equal for two jobs exactly when they were asked the same test items in the same way."""

    def retention_key(self) -> str:
        """Equal for two tasks that ask a model the same about what it knows beside the task."""

    def measure_retention(self, model: nn.Module) -> Any:
        """What the model knows beside the task; called with the bare base, and again after training."""

    def compare_retention(self, before: Any, after: Any) -> dict[str, float]:
        """Forgetting or drift, as metrics."""
