"""What one can choose: a dataclass per configuration group. Imports no torch, so that a typo is told at once.

A field's metadata holds its bounds or choices; `check.py` reads them. A new knob is one line here and its value in a
YAML.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NEEDED = "???"  # OmegaConf's mark for a value that must be given

DTYPES = ("float32", "bfloat16", "float16", "int8", "int4")
MODALITIES = ("text", "image")
SCHEDULERS = ("cosine", "linear", "constant")
SOURCES = ("auto", "hub", "files", "embedded")
STAGES = ("single", "tune", "confirm")
SAMPLERS = ("gp", "tpe", "random")
NOISE_DENSITIES = ("uniform", "logit_normal", "mode", "sigma_sqrt")
PRUNERS = ("successive_halving", "median", "none")


def _number(
    default: float | None, low: float | None = None, high: float | None = None, above: float | None = None
) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "above": above})


def _one_of(default: str, choices: tuple[str, ...]) -> Any:
    return field(default=default, metadata={"choices": choices})


@dataclass
class PipelineConfig:
    """How a diffusion pipeline wants to be used: what it was trained for."""

    resolution: int = _number(512, low=16)  # pixels, width and height
    max_prompt_tokens: int = _number(512, low=1)  # prompts are padded, or cut, to as many
    text_encoder_layers: list[int] = field(default_factory=lambda: [9, 18, 27])  # hidden states the transformer reads


@dataclass
class ModelConfig:
    """A frozen base model: what to load and how to hold it in memory."""

    name: str = NEEDED  # word of the group, also MLflow's tag
    modality: str = _one_of("text", MODALITIES)  # must be the task's
    id: str = NEEDED  # hub id, local folder, or "embedded" for weights shipped in this package
    revision: str | None = None  # hub branch, tag or commit; null: main, resolved to its commit in result.json
    dtype: str = _one_of("bfloat16", DTYPES)  # int8 and int4 need bitsandbytes and CUDA
    attn_implementation: str | None = None  # null: transformers chooses (sdpa)
    pipeline: PipelineConfig | None = None  # of modality image
    trust_remote_code: bool = False  # true runs Python code that the model's repository ships; command line only


@dataclass
class SearchSpaceConfig:
    """What a study tunes for one method; the command line may override or extend it."""

    lr: list[float] = field(default_factory=lambda: [1e-5, 1e-2])  # [low, high], searched on a log scale
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
    peft_type: str | None = None  # a member of peft.PeftType; null: full fine-tuning
    paper: str = ""  # link
    capacity: int | None = _number(None, low=1)  # value of the method's own size knob; null: it has none
    capacity_knob: str = ""  # what the knob is: rank, block size, virtual tokens, ...
    lr: float = _number(
        1e-4, above=0
    )  # published default for models of a billion parameters and more; hparams.lr follows it
    targets: str | None = (
        None  # a role of methods/targets.py (attention, mlp, linear); null: peft's choice for the architecture
    )
    peft: dict[str, Any] = field(default_factory=dict)  # arguments of the PEFT config
    modalities: list[str] = field(default_factory=list)  # of models that it can be put on; each YAML names them
    hook: HookConfig | None = None
    search_space: SearchSpaceConfig = field(default_factory=SearchSpaceConfig)
    path: str | None = None  # method=from_file: a folder with adapter_config.json


@dataclass
class TaskConfig:
    """What every task has."""

    name: str = NEEDED
    modality: str = _one_of("text", MODALITIES)
    base_score: bool = True  # also score the model before training, on the same test items


@dataclass
class TextTaskConfig(TaskConfig):
    """What both text tasks share: where rows come from, how long they are, what is measured."""

    source: str = _one_of("auto", SOURCES)  # auto: files if given, embedded for embedded models, else hub
    train_files: str | None = None  # jsonl, parquet, csv, or a folder of datasets.save_to_disk
    valid_files: str | None = None  # null: rows held out of the training files
    test_files: str | None = None
    prompt_column: str | None = None  # null: the first known name (query, question, prompt, instruction)
    response_column: str | None = None  # null: the first known name (response, answer, completion, output)
    template: str = "{prompt}"  # the text before the response; {prompt} is the row's prompt
    loss_on: str = _one_of(
        "response", ("response", "all")
    )  # tokens that are trained on; only responses are ever judged
    train_rows: int | None = _number(None, low=1)  # null: all
    valid_rows: int = _number(1000, low=1)
    test_rows: int | None = _number(None, low=1)  # null: all
    max_new_tokens: int = _number(300, low=1)  # longest answer that evaluation waits for
    general_text: str = "auto"  # forgetting is measured on it: auto, hub, shipped, or a jsonl file with a text column
    general_rows: int = _number(100, low=0)  # passages; 0: forgetting is not measured


@dataclass
class MetamathConfig(TextTaskConfig):
    """Mathematics word problems, judged by the final number."""

    max_characters: int | None = _number(
        None, low=1
    )  # training rows with a longer "prompt response" are dropped; null: none


@dataclass
class SftConfig(TextTaskConfig):
    """The user's own prompts and responses, or chats."""

    messages_column: str | None = None  # chat rows ([{role, content}, ...]) go through the tokenizer's chat template
    scorer: str | None = None  # "module:function" of (prompt, target, generated) -> float; command line only


@dataclass
class ImageGenConfig(TaskConfig):
    """A new concept from a handful of photos, judged by how much generated pictures look like photos held out."""

    modality: str = _one_of("image", MODALITIES)
    source: str = _one_of("auto", SOURCES)  # auto: files if images is given, embedded for embedded models, else hub
    images: str | None = None  # a folder of photos with metadata.jsonl (file_name, prompt), or with instance_prompt
    dataset: str = "peft-internal-testing/cat-image-dataset"  # hub data set with a column `image`
    instance_prompt: str | None = None  # one prompt for all photos
    prompts: list[str] = field(default_factory=list)  # hub: one for each photo, in the data set's order
    valid_photos: int | None = _number(None, low=1)  # null: a fifth of the photos, 2 at most
    test_photos: int | None = _number(None, low=1)  # null: a fifth of the photos, 4 at most
    resolution: int = _number(512, low=16)  # pixels, width and height
    augment: bool = False  # also train on randomly cropped and mirrored photos
    prior_photos: int = _number(0, low=0)  # pictures of prior_prompt, made by the base, that are trained on too
    prior_prompt: str | None = None  # the class of the concept: "a photo of a cat"
    prior_weight: float = _number(1.0, above=0)  # weight of their loss
    noise_density: str = _one_of("uniform", NOISE_DENSITIES)  # how noise levels are drawn in training
    logit_mean: float = 0.0  # of logit_normal
    logit_std: float = _number(1.0, above=0)  # of logit_normal
    mode_scale: float = 1.29  # of mode
    inference_steps: int = _number(20, low=1)  # denoising steps of a picture
    guidance: float = _number(3.5, low=1)  # classifier-free guidance; 1: none
    max_prompt_tokens: int = _number(512, low=1)
    text_encoder_layers: list[int] = field(default_factory=lambda: [9, 18, 27])  # hidden states the transformer reads
    valid_seeds: int = _number(1, low=0)  # pictures for each validation prompt; 0: valid/loss alone
    test_seeds: int = _number(3, low=1)  # pictures for each test prompt
    drift_prompts: list[str] | None = None  # unrelated to the concept; null: the embedded world's; []: no drift
    drift_seeds: int = _number(1, low=1)  # pictures for each of them
    sample_prompts: list[str] | None = None  # only to be looked at; null: the embedded world's
    encoder: str = "auto"  # what compares pictures: a hub id or folder; auto: pocket, else facebook/dinov2-base
    clip_model: str | None = None  # also compare pictures with their prompts, by this CLIP model


TASKS: dict[str, type[TaskConfig]] = {"metamath": MetamathConfig, "sft": SftConfig, "image-gen": ImageGenConfig}
# By modality: metrics that a task reports while it trains, the usual one first.
OBJECTIVES = {"text": ("valid/loss",), "image": ("valid/dino_similarity", "valid/loss")}


def objectives_of(task: str) -> tuple[str, ...]:
    """What the trials of a task can be judged by."""
    return OBJECTIVES[TASKS[task].modality]


@dataclass
class HparamsConfig:
    """How to train, apart from the method."""

    lr: float = _number(1e-4, above=0)
    lr_scale: float = _number(1.0, above=0)  # factor from published learning rates, and their ranges, to this model's
    max_steps: int = _number(5000, low=1)  # optimizer steps
    batch_size: int = _number(4, low=1)  # rows per forward pass
    gradient_accumulation: int = _number(1, low=1)  # forward passes per optimizer step
    optimizer: str = "AdamW"  # a class of torch.optim
    optimizer_kwargs: dict[str, Any] = field(default_factory=dict)
    weight_decay: float = _number(0.1, low=0)
    scheduler: str = _one_of("cosine", SCHEDULERS)
    warmup_fraction: float = _number(0.1, low=0, high=1)  # share of max_steps
    max_grad_norm: float = _number(1.0, low=0)  # 0: no clipping
    max_seq_length: int = _number(768, low=8)  # tokens of prompt and response; longer rows are cut
    bucket_batches: int = _number(20, low=1)  # batches formed together by length; 1: no bucketing
    gradient_checkpointing: bool = False  # recompute activations: less memory, about a third more time
    amp: bool = False  # autocast the forward pass to bfloat16
    adapter_float32: bool = True  # hold adapter weights in float32 beside a 16-bit base
    compile: bool = False  # torch.compile
    fused_loss: bool = True  # never hold the full float32 logits
    eval_every: int = _number(250, low=0)  # steps between two validation losses; 0: at the end only
    eval_steps: list[int] | None = None  # measure it after these steps instead, and at the end
    eval_batch_size: int = _number(50, low=1)
    checkpoint_every: int = _number(0, low=0)  # steps between two checkpoints to resume from; 0: none


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
class JobConfig:
    """One job, whole."""

    hparams: HparamsConfig = field(default_factory=HparamsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = _number(0, low=0, high=2**32 - 1)  # moves initialisation, data order and dropout
    stage: str = _one_of("single", STAGES)  # tune reads no test data
    study: str | None = None
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    plan: bool = True  # predict the memory of training before it begins
    gpu: str | None = None  # memory of the card to plan for, as 24GB; null: the device's own
    fit: bool = False  # lower hparams.batch_size until training fits, and accumulate gradients in its place
    allow_shared_gpu: bool = False  # measure although others hold memory on the device
    save_adapter: bool = True  # false keeps the numbers and lets the weights go
    cache: str = "outputs/cache"  # tokenised data and base scores, reused by later jobs
    resume: str | None = None  # a job folder with a checkpoint: continue it


@dataclass
class BudgetConfig:
    """What each study may spend, alternatives to a number of trials."""

    tokens: int | None = _number(None, low=1)  # training tokens, of all trials of a study together
    gpu_seconds: float | None = _number(None, above=0)  # time that trials held a device, setup and validation included


@dataclass
class SamplerConfig:
    """Who chooses the settings of the next trial."""

    name: str = _one_of("gp", SAMPLERS)
    kwargs: dict[str, Any] = field(default_factory=dict)  # arguments of Optuna's class


@dataclass
class PrunerConfig:
    """Who ends poor trials early."""

    name: str = _one_of("successive_halving", PRUNERS)
    kwargs: dict[str, Any] = field(default_factory=dict)  # arguments of Optuna's class


@dataclass
class ConfirmConfig:
    """The best settings of each study, trained anew and judged on test data."""

    seeds: int = _number(3, low=0)  # fresh seeds; 0: tune only
    default_seeds: int = _number(1, low=0)  # of them, how many the published default is run with too, to compare


@dataclass
class SweepConfig:
    """A fair sweep: `hydra/sweeper=fair`. On the command line its keys may be written without `hydra.sweeper.`."""

    name: str | None = None  # folder under outputs/sweeps; null: made from what is compared
    n_trials: int | None = _number(None, low=1)  # trials of each study; null: 10, or what the budget pays for
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    objective: str | None = None  # what trials are judged by; null: the task's own (valid/loss)
    constraint: str | None = None  # 'memory<=12GB', several by commas: only trials that keep to it can win
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    sampler_seed: int = _number(0, low=0)
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    extend: bool = False  # widen a range whose end is best, and go on
    if_exists: str = _one_of("resume", ("resume", "raise", "new"))
    workers: int | None = _number(None, low=1)  # null: one for each GPU; without one, for each CPU core, 8 at most
    storage: str | None = None  # an Optuna URL (postgresql://...); null: a journal file in the sweep's folder
    lease_seconds: float = _number(60.0, above=0)  # a worker of another machine that is silent for longer is given up
    stall_seconds: float = _number(1800.0, above=0)  # a trial without any step or message for longer is killed
    dry_run: bool = False  # print studies, budgets, estimated steps and tokens, and end
