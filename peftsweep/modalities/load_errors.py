"""What transformers, diffusers, datasets, safetensors and the hub raise, as one error that says what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from peftsweep.errors import DataError, ModelError, Problem

# Whose exceptions are about the model or the way to it; huggingface_hub has used requests, httpx and httpx2.
LIBRARIES = ("safetensors", "huggingface_hub", "httpx", "httpcore", "requests", "urllib3")


@contextlib.contextmanager
def model_errors(model_id: str) -> Iterator[None]:
    """Within it, what transformers, safetensors and the hub raise is a ModelError that says what to do."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(_diagnose(model_id, error)) from error
    except Exception as error:
        if type(error).__module__.startswith(LIBRARIES):
            raise ModelError(_diagnose(model_id, error)) from error
        raise


@contextlib.contextmanager
def hub_data_errors(rule: str, dataset: str, key: str, fix: str) -> Iterator[None]:
    """Within it, whatever the hub, the network or a file's format raises is a DataError that says what to do.

    rule: what must hold; key: the setting that asked for the data set; fix: the ways out.
    """
    try:
        yield
    except Exception as error:  # datasets, the hub's client and the network each raise their own
        raise DataError(Problem(f"{rule} ({error})", dataset, key, fix)) from error


def require_all_weights(missing: Collection[str], model_id: str) -> None:
    """transformers fills weights that a file lacks with random ones and only warns."""
    if missing:
        rule = f"the weight files must hold every weight; {len(missing)} are missing"
        raise ModelError(Problem(rule, sorted(missing)[:3], model_id, "Download or copy the model again."))


def _diagnose(model_id: str, error: Exception) -> Problem:
    text = f"{type(error).__name__} {error}".replace(model_id, "")  # a folder may be called anything
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    advice = {
        ("gated", "401 Client", "403 Client", "Unauthorized", "Forbidden"): (
            "the model is gated",
            "Accept its licence on its hub page and run: hf auth login.",
        ),
        ("RepositoryNotFound", "is not a local folder and is not a valid model identifier"): (
            "the hub has no such model",
            "Check model.id.",
        ),
        ("RevisionNotFound", "is not a valid git identifier"): (
            "the hub has no such revision",
            "Check model.revision.",
        ),
        ("trust_remote_code",): (
            "the model brings its own Python code",
            "Read it, then add model.trust_remote_code=true on the command line.",
        ),
        ("connect", "resolve", "offline", "Network", "couldn't find"): (
            "the model must be on this machine or the hub reachable",
            "Check the network, download it first (hf download), or give a local folder as model.id.",
        ),
        ("Safetensor", "HeaderTooLarge", "header", "deserializ", "mismatch", "size mismatch", "incomplete"): (
            "the weight files must be whole",
            "Download or copy the model again.",
        ),
    }
    for marks, (rule, fix) in advice.items():
        if any(mark.lower() in text.lower() for mark in marks):
            return Problem(f"{rule} ({reason})", model_id, "model.id", fix)
    return Problem(f"the model must load ({reason})", model_id, "model.id")
