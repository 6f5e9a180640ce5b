"""Errors say the rule, the value, the source and the way out, and survive the way from a worker to its supervisor."""

import errno
import pickle

import pytest

from peftsweep import errors
from peftsweep.errors import (
    ConfigError,
    Interrupted,
    MethodError,
    PeftsweepError,
    Problem,
    is_device_lost,
    is_out_of_memory,
)

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, PeftsweepError)]


def test_a_problem_reads_as_one_sentence_and_advice():
    problem = Problem("hparams.lr must be above 0", -1, "the command line", "Raise it.")
    assert str(problem) == "hparams.lr must be above 0, got -1 (from the command line). Raise it."


def test_a_problem_leaves_out_what_is_not_known():
    assert str(Problem("the disk must have room")) == "the disk must have room."


def test_a_value_of_zero_or_nothing_is_shown():
    assert "got 0" in str(Problem("steps must be positive", 0))
    assert "got ''" in str(Problem("a name must be given", ""))


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_pickling_with_all_its_problems(kind):
    error = kind(Problem("first", 1), Problem("second", source="a file"))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert copy.problems == error.problems
    assert str(copy) == "first, got 1.\nsecond (from a file)."


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_takes_plain_text_too(kind):
    assert str(kind("the job was interrupted.")) == "the job was interrupted."


@pytest.mark.parametrize("kind", CLASSES)
def test_no_error_ends_a_process_as_if_all_were_well(kind):
    assert kind.exit_code in (1, 2, 130)


def test_own_errors_are_also_what_python_calls_them():
    """So that a caller of the library needs no import to catch them."""
    assert issubclass(ConfigError, ValueError)
    assert issubclass(errors.OutputError, OSError)
    assert issubclass(errors.OutOfMemoryError, MemoryError)


def test_an_interruption_has_the_shells_exit_code():
    assert Interrupted.exit_code == 128 + 2


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_ran_out_is_known_by_whatever_library_tells_it(error):
    assert is_out_of_memory(error)
    assert is_out_of_memory(wrapped(error))
    assert not is_device_lost(error)


@pytest.mark.parametrize("what", ["an illegal memory access was encountered", "device-side assert triggered"])
def test_a_device_that_answers_nothing_any_more_is_known(what):
    error = RuntimeError(f"CUDA error: {what}")
    assert is_device_lost(error)
    assert is_device_lost(wrapped(error))
    assert not is_out_of_memory(error)


def test_other_errors_are_neither():
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory?")):
        assert not is_out_of_memory(error)
        assert not is_device_lost(error)


def wrapped(error):
    """As a room raises it that explains what others raise."""
    try:
        raise MethodError("it doesn't fit") from error
    except MethodError as explained:
        return explained
