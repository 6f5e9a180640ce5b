"""What moves the predicted peak, and which way."""

import dataclasses
from collections.abc import Callable

import pytest

from peftsweep.config.schema import JobConfig
from peftsweep.errors import MethodError
from peftsweep.job.plan import planner as estimate
from peftsweep.job.plan.planner import ALLOCATOR, MemoryPlan, Planner, build_step, plan_job
from peftsweep.job.plan.quantised import NF4_BLOCK
from peftsweep.job.plan.trace import attach_to_one_block, trace_training
from peftsweep.memory.ledger import Category
from peftsweep.modalities.skeleton import build_skeleton

FLOAT32 = 4
SIZES = ("task.source=hub", "hparams.max_seq_length=128")  # rows of a known length

JobOf = Callable[..., JobConfig]
PlanOf = Callable[..., MemoryPlan]


def test_full_fine_tuning_holds_weights_gradients_and_two_moments_when_it_steps(plan_of: PlanOf) -> None:
    """One row of few tokens: beside four copies there is little, and where the step is not fused a fifth."""
    settings = ("method=full", "hparams.batch_size=1", "task.source=hub", "hparams.max_seq_length=16")
    fused, unfused = plan_of(*settings), plan_of(*settings, "+hparams.optimizer_kwargs.foreach=true")
    parameters = fused.total_params * FLOAT32
    for plan in (fused, unfused):
        assert plan.trainable_params == plan.total_params
        assert plan.parts[Category.ADAPTER] == parameters  # all is trained, so that these are the base's weights
        assert plan.adapter_bytes == parameters
    assert 2 * parameters < fused.parts[Category.OPTIMIZER] <= 2 * parameters + 1024
    assert fused.train_allocated_bytes < 4.5 * parameters
    assert unfused.parts[Category.GRADIENTS] == parameters
    assert 2 * parameters < unfused.parts[Category.OPTIMIZER] <= 3.1 * parameters


def test_parts_of_lora_are_its_own_parameters_once_for_each(plan_of: PlanOf) -> None:
    plan = plan_of("method=lora")
    trained = plan.trainable_params * FLOAT32
    assert plan.parts[Category.ADAPTER] == trained
    assert plan.adapter_bytes == trained
    assert plan.parts[Category.WEIGHTS] >= (plan.total_params - plan.trainable_params) * FLOAT32
    # The moments, and a counter for each tensor.
    assert 2 * trained <= plan.parts[Category.OPTIMIZER] <= 2 * trained + 1024
    assert sum(plan.parts.values()) - plan.parts[ALLOCATOR] == plan.train_allocated_bytes


@pytest.mark.parametrize("settings", [("method=lora",), ("method=oft",), ("method=lora", "task=image-gen")], ids=str)
def test_memory_grows_with_the_batch(settings: tuple[str, ...], job_of: JobOf) -> None:
    planner = Planner(job_of(*settings))
    peaks = [planner.plan(size).train_allocated_bytes for size in (1, 2, 4, 8)]
    assert peaks == sorted(set(peaks))
    # A part that doesn't grow, and one that grows in proportion.
    assert peaks[3] - peaks[2] == pytest.approx(2 * (peaks[2] - peaks[1]), rel=0.02)


def test_memory_grows_with_the_length_of_rows(plan_of: PlanOf) -> None:
    short, long = (plan_of("task.source=hub", f"hparams.max_seq_length={length}") for length in (64, 128))
    assert (short.tokens, long.tokens) == (64, 128)
    assert short.train_allocated_bytes < long.train_allocated_bytes


def test_the_longest_row_of_the_data_counts_where_it_is_at_hand(plan_of: PlanOf) -> None:
    plan = plan_of("hparams.max_seq_length=256")
    assert plan.tokens < 256
    assert f"the longest training row has {plan.tokens} tokens" in plan.notes


def test_pictures_of_the_class_double_the_batch_of_a_step(plan_of: PlanOf) -> None:
    """Prior preservation trains on a picture of the class beside each photo: as a batch of twice the photos."""
    settings = ("method=lora", "task=image-gen")
    prior = ("task.prior_photos=4", "task.prior_prompt=a toy")
    without, doubled = (plan_of(*settings, f"hparams.batch_size={rows}") for rows in (4, 8))
    with_prior = plan_of(*settings, *prior, "hparams.batch_size=4")
    assert without.train_peak_bytes < with_prior.train_peak_bytes
    assert with_prior.train_allocated_bytes == pytest.approx(doubled.train_allocated_bytes, rel=0.01)
    assert with_prior.tokens == 2 * without.tokens


@pytest.mark.parametrize("setting", ["hparams.gradient_checkpointing=true", "hparams.adapter_float32=false"])
def test_a_setting_that_saves_memory_takes_less(setting: str, plan_of: PlanOf) -> None:
    settings = ("method=lora", "model.dtype=bfloat16", *SIZES)
    assert plan_of(*settings, setting).train_allocated_bytes < plan_of(*settings).train_allocated_bytes


def test_the_fused_loss_takes_less_than_the_plain_one(plan_of: PlanOf) -> None:
    """For a vocabulary of a real model's size, and enough rows for more than one slice of it."""
    settings = ("model=smollm2-135m", "method=beft", "hparams.max_seq_length=512")
    fused, plain = (plan_of(*settings, f"hparams.fused_loss={value}") for value in ("true", "false"))
    assert fused.train_peak_bytes < 0.7 * plain.train_peak_bytes
    assert fused.parts[Category.LOGITS] < plain.parts[Category.LOGITS]


def test_checkpointing_trades_no_parameters(plan_of: PlanOf) -> None:
    plain, checkpointed = (plan_of("method=lora", f"hparams.gradient_checkpointing={v}") for v in ("false", "true"))
    assert plain.trainable_params == checkpointed.trainable_params
    assert plain.adapter_bytes == checkpointed.adapter_bytes


@pytest.mark.parametrize(("dtype", "bytes_a_weight"), [("int4", 0.5 + FLOAT32 / NF4_BLOCK), ("int8", 1.0)])
@pytest.mark.parametrize("task", ["metamath", "image-gen"])
def test_quantised_weights_take_their_share(dtype: str, bytes_a_weight: float, task: str, plan_of: PlanOf) -> None:
    """Of 2 bytes a weight in bfloat16. Embeddings, heads and norms stay, and int8 has a scale a row."""
    whole, packed = (plan_of(f"task={task}", "method=lora", f"model.dtype={name}") for name in ("bfloat16", dtype))
    weights, smaller = (plan.parts[Category.WEIGHTS] for plan in (whole, packed))
    assert packed.total_params == whole.total_params
    assert packed.trainable_params == whole.trainable_params
    assert weights * bytes_a_weight / 2 <= smaller <= weights * (bytes_a_weight / 2 + 0.12)


def test_gradients_that_wait_for_more_batches_take_memory(plan_of: PlanOf) -> None:
    settings = ("method=full", *SIZES, "hparams.batch_size=8")
    one, two, many = (plan_of(*settings, f"hparams.gradient_accumulation={n}") for n in (1, 2, 1000))
    assert one.train_allocated_bytes < two.train_allocated_bytes == many.train_allocated_bytes


def test_a_planner_serves_jobs_that_differ_in_their_batch_alone(job_of: JobOf) -> None:
    planner = Planner(job_of("method=lora"))
    assert planner.serves(job_of("method=lora", "hparams.batch_size=7", "hparams.gradient_accumulation=3"))
    assert not planner.serves(job_of("method=lora", "hparams.lr=0.5"))
    assert not planner.serves(job_of("method=oft"))


def test_a_planner_attaches_once_and_plans_each_batch_as_a_planner_of_its_own(
    job_of: JobOf, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = plan_of("method=lora-plus", "hparams.batch_size=3", "hparams.gradient_accumulation=2")
    planner = Planner(job_of("method=lora-plus"))
    planner.plan()
    monkeypatch.setattr(estimate, "attach_to_skeleton", None)
    assert planner.plan(3, 2) == fresh
    monkeypatch.setattr(estimate, "trace_training", None)
    assert planner.plan(3, 2) == fresh


def test_a_planner_that_failed_fails_again_alike(job_of: JobOf) -> None:
    planner = Planner(job_of("method=lora", "method.capacity=1000"))
    errors = []
    for _ in range(2):
        with pytest.raises(MethodError) as caught:
            planner.plan()
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("method", ["lora", "full", "ln-tuning"])
def test_one_block_repeated_takes_what_the_whole_model_takes(method: str, job_of: JobOf) -> None:
    config = job_of(f"method={method}")
    skeleton = build_skeleton(config.model)
    attached = attach_to_one_block(config, skeleton)
    step = build_step(config, skeleton, 2, 64)
    repeated = trace_training(attached, step, config.hparams, None).peak_allocated_bytes
    whole = Planner(config, lambda *_: step).plan(2)
    assert attached.count_parameters() == (whole.trainable_params, whole.total_params)
    assert repeated == pytest.approx(whole.train_allocated_bytes, rel=0.01)


def test_settings_that_are_not_followed_are_told(job_of: JobOf) -> None:
    config = job_of("method=lora")
    plan = plan_job(dataclasses.replace(config, hparams=dataclasses.replace(config.hparams, amp=True, compile=True)))
    told = " ".join(plan.notes)
    assert "hparams.amp is not traced" in told
    assert "hparams.compile is not traced" in told


def test_the_range_is_around_the_prediction(plan_of: PlanOf) -> None:
    plan = plan_of("method=lora")
    assert plan.low_bytes < plan.train_peak_bytes < plan.high_bytes


def test_buffers_that_peft_leaves_on_the_host_take_nothing(plan_of: PlanOf) -> None:
    """BOFT's permutations, a square matrix for each layer."""
    assert plan_of("method=boft").parts[Category.WEIGHTS] == plan_of("method=ia3").parts[Category.WEIGHTS]
