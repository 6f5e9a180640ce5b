"""What one can choose: a dataclass per configuration group. Imports no torch, so that a typo is told at once.

A field's metadata holds its bounds or choices, whether it can run code that somebody sent (`runs_code`, for the
command line only), and the part that it plays when jobs are compared; `check.py`, `trust.py` and `records.job_settings`
read them. A new knob is one line here and its value in a YAML. What only one modality has stands in its own folder:
modalities/<name>/settings.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EMBEDDED = "embedded"  # id of a model whose weights ship with this package
NEEDED = "???"  # OmegaConf's mark for a value that must be given

QUANTISED = ("int8", "int4")
DTYPES = ("float32", "bfloat16", "float16", *QUANTISED)
SCHEDULERS = ("cosine", "linear", "constant")
SOURCES = ("auto", "hub", "files", "embedded")  # where a task's data are from
STAGES = ("single", "tune", "confirm")
SAMPLERS = ("gp", "tpe", "random")
PRUNERS = ("successive_halving", "median", "none")
RULES = ("sequential", "fixed")  # how many fresh seeds the best settings get


# The part that a field of JobConfig plays in a comparison, where it is no setting that must be equal.
CIRCUMSTANCE = {"part": "circumstance"}  # where or how a job runs, which changes nothing about what is measured
IDENTITY = {"part": "identity"}  # what tells jobs with the same settings apart


def number(
    default: float | None, low: float | None = None, high: float | None = None, above: float | None = None
) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "above": above})


def one_of(default: str, choices: tuple[str, ...]) -> Any:
    return field(default=default, metadata={"choices": choices})


def _circumstance(default: Any) -> Any:
    return field(default=default, metadata=CIRCUMSTANCE)


@dataclass
class ModelConfig:
    """A frozen base model: what to load and how to hold it in memory."""

    name: str = NEEDED  # word of the group, also MLflow's tag; of `hf` and `flux2` the last part of their id
    modality: str = NEEDED  # of config/registry.py; must be the task's
    id: str = NEEDED  # hub id, local folder, or "embedded" for weights shipped in this package
    revision: str | None = None  # hub branch, tag or commit; null: main, resolved to its commit in result.json
    dtype: str = one_of("bfloat16", DTYPES)  # int8 and int4 need bitsandbytes and CUDA
    attn_implementation: str | None = None  # null: transformers chooses (sdpa)
    # true runs Python code that the model's repository ships
    trust_remote_code: bool = field(default=False, metadata={"runs_code": True})


@dataclass
class SearchSpaceConfig:
    """What a study tunes for one method; the command line may override or extend it."""

    # [low, high] around the published rate, searched on a log scale times hparams.lr_scale; not typed
    lr: list[float] = field(default_factory=lambda: [1e-5, 1e-2])
    capacity: list[int] | None = None  # allowed values in rising order, searched by index; null: no size knob


@dataclass
class HookConfig:
    """The one thing a method may do beside its PEFT config: calibrate, re-allocate ranks, bring its optimizer."""

    name: str = NEEDED  # a row of methods/hooks/by_name.py
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class MethodConfig:
    """A PEFT method, or full fine-tuning. One YAML of conf/method each, holding what differs from peft's defaults."""

    name: str = NEEDED
    peft_type: str | None = None  # a member of peft.PeftType; null: no adapter, the model's own weights train
    trains: str = one_of("all", ("all", "head"))  # of these: all of them, or the task's new head alone
    paper: str = ""  # link
    capacity: int | None = number(None, low=1)  # value of the method's own size knob; null: it has none
    capacity_knob: str = ""  # what the knob is: rank, block size, virtual tokens, ...
    # As published, for models of a billion parameters and more; not typed: hparams.lr, which trains, follows it.
    lr: float = number(1e-4, above=0)
    # A role of methods/targets.py (attention, mlp, linear); null: peft's choice for the architecture.
    targets: str | None = None
    peft: dict[str, Any] = field(default_factory=dict)  # arguments of the PEFT config
    modalities: list[str] = field(default_factory=list)  # of models that it can be put on; each YAML names them
    hook: HookConfig | None = None
    search_space: SearchSpaceConfig = field(default_factory=SearchSpaceConfig)
    path: str | None = None  # method=from_file: a folder with adapter_config.json


@dataclass
class TaskConfig:
    """What every task has."""

    name: str = NEEDED
    modality: str = NEEDED  # of config/registry.py
    # Also score the model before training, on the same test items; null: in sweeps, and where it is known already.
    base_score: bool | None = _circumstance(None)


@dataclass
class HparamsConfig:
    """How to train, apart from the method."""

    lr: float = number(1e-4, above=0)  # the rate that trains
    lr_scale: float = number(1.0, above=0)  # factor from published learning rates, and their ranges, to this model's
    head_lr: float | None = number(None, above=0)  # of a new head, the same for all methods; null: lr
    max_steps: int = number(5000, low=1)  # optimizer steps
    batch_size: int = number(4, low=1)  # rows that are drawn together
    gradient_accumulation: int = number(1, low=1)  # batches per optimizer step
    # Rows of a batch go through together as long as they have no more tokens, padding counted; null: all of a batch.
    max_tokens_per_pass: int | None = number(None, low=1)
    optimizer: str = "AdamW"  # a class of torch.optim
    optimizer_kwargs: dict[str, Any] = field(default_factory=dict)
    weight_decay: float = number(0.1, low=0)
    scheduler: str = one_of("cosine", SCHEDULERS)
    warmup_fraction: float = number(0.1, low=0, high=1)  # share of max_steps
    max_grad_norm: float = number(1.0, low=0)  # 0: no clipping
    max_seq_length: int = number(768, low=8)  # tokens of prompt and response; longer rows are cut
    bucket_batches: int = number(20, low=1)  # batches formed together by length; 1: no bucketing
    gradient_checkpointing: bool = False  # recompute activations: less memory, about a third more time
    amp: bool = False  # autocast the forward pass to bfloat16
    adapter_float32: bool = True  # hold adapter weights in float32 beside a 16-bit base
    tf32: bool = False  # on CUDA: float32 products and convolutions in TensorFloat-32, faster and less exact
    compile: bool = False  # torch.compile the repeated blocks; rounds otherwise than without
    fused_loss: bool = True  # never hold the full float32 logits
    eval_every: int = number(250, low=0)  # steps between two validation losses; 0: at the end only
    eval_steps: list[int] | None = None  # measure it after these steps instead, and at the end
    eval_batch_size: int = number(50, low=1)
    # Steps between two checkpoints to resume from; null: every ten minutes, but in sweeps none; 0: none.
    checkpoint_every: int | None = number(None, low=0)


@dataclass
class TrackingConfig:
    """Where MLflow logs to."""

    name: str = NEEDED
    enabled: bool = True
    uri: str | None = None  # null: MLFLOW_TRACKING_URI, else sqlite:///outputs/mlflow.db
    experiment: str = "peftsweep"
    system_metrics: bool = True  # CPU, memory and GPU use, sampled by MLflow
    log_adapter: bool = True  # upload the adapter's weights too
    params: list[str] | None = None  # dotted keys to log as parameters, the telling ones first; null: all settings
    parent_run_id: str | None = None  # MLflow run to nest this job's under; a sweep sets it to its study's


@dataclass
class ParallelConfig:
    """Over how many devices a job is spread; sizes as in accelerate's ParallelismConfig."""

    name: str = one_of("none", ("none", "ddp", "fsdp"))
    dp_shard_size: int = number(1, low=1)  # devices that hold a copy of the model together
    dp_replicate_size: int = number(1, low=1)  # such copies
    reshard_after_forward: bool = True  # false keeps each block gathered until its backward pass: faster, more memory
    offload: bool = False  # hold the parts in the host's memory

    @property
    def ranks(self) -> int:
        return self.dp_shard_size * self.dp_replicate_size


@dataclass
class JobConfig:
    """One job, whole."""

    hparams: HparamsConfig = field(default_factory=HparamsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=CIRCUMSTANCE)
    # The seed moves initialisation, data order and dropout.
    seed: int = field(default=0, metadata={"low": 0, "high": 2**32 - 1, **IDENTITY})
    stage: str = field(default="single", metadata={"choices": STAGES, **IDENTITY})  # tune reads no test data
    study: str | None = field(default=None, metadata=IDENTITY)
    device: str = _circumstance("auto")  # auto, cpu, cuda, cuda:1, ...
    plan: bool = _circumstance(True)  # predict the memory of training before it begins
    gpu: str | None = _circumstance(None)  # memory of the card to plan for, as 24GB; null: the device's own
    fit: bool = _circumstance(False)  # lower hparams.max_tokens_per_pass until training fits
    allow_shared_gpu: bool = _circumstance(False)  # measure although others hold memory on the device
    save_adapter: bool = _circumstance(True)  # false keeps the numbers and lets the weights go
    cache: str = _circumstance("outputs/cache")  # tokenised data and base scores, reused by later jobs
    resume: str | None = _circumstance(None)  # a job folder with a checkpoint: continue it


@dataclass
class BudgetConfig:
    """What each study may spend, alternatives to a number of trials."""

    tokens: int | None = number(None, low=1)  # training tokens, of all trials of a study together
    gpu_seconds: float | None = number(None, above=0)  # time that trials held a device, setup and validation included


@dataclass
class SamplerConfig:
    """Who chooses the settings of the next trial."""

    name: str = one_of("gp", SAMPLERS)
    kwargs: dict[str, Any] = field(default_factory=dict)  # arguments of Optuna's class


@dataclass
class PrunerConfig:
    """Who ends poor trials early."""

    name: str = one_of("successive_halving", PRUNERS)
    kwargs: dict[str, Any] = field(default_factory=dict)  # arguments of Optuna's class


@dataclass
class ConfirmConfig:
    """The best settings of each study, trained anew with fresh seeds and judged on test data."""

    rule: str = one_of("sequential", RULES)
    # sequential: numbers of seeds after which the contenders are judged; who is out gets no more
    looks: list[int] = field(default_factory=lambda: [3, 5, 7, 10, 14])
    margin: str | None = None  # a difference below it doesn't matter, 2% or 0.02; null: by the size of the test set
    seeds: int | None = number(None, low=0)  # at most; null: the last look, fixed: 3; 0: tune only
    default_seeds: int | None = number(None, low=0)  # of the published default; null: as many as the first look


@dataclass
class SweepConfig:
    """A fair sweep: `hydra/sweeper=fair`. On the command line its keys may be written without `hydra.sweeper.`."""

    name: str | None = None  # folder under outputs/sweeps; null: made from what is compared, and the day
    n_trials: int | None = number(None, low=1)  # trials of each study; null: 10, or what the budget pays for
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    objective: str | None = None  # what trials are judged by; null: the task's own (valid/loss)
    constraint: str | None = None  # 'memory<=12GB', several by commas: only trials that keep to it can win
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    sampler_seed: int = number(0, low=0)
    prior: str | None = None  # an earlier sweep, by name or folder: each search starts around what was best there
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    extend: bool = False  # widen a range whose end is best, and go on
    if_exists: str = one_of("resume", ("resume", "raise", "new"))
    workers: int | None = number(None, low=1)  # null: one for each GPU; without one, for each CPU core, 8 at most
    storage: str | None = None  # an Optuna URL (postgresql://...); null: a journal file in the sweep's folder
    lease_seconds: float = number(60.0, above=0)  # a worker of another machine that is silent for longer is given up
    stall_seconds: float = number(1800.0, above=0)  # a trial without any step or message for longer is killed
    dry_run: bool = False  # print studies, budgets, estimated steps and tokens, and end
