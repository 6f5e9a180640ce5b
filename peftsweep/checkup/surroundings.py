"""Versions, machine, hub, MLflow, folders and launchers. Imports no torch: the driver is asked about GPUs."""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from peftsweep.checkup.findings import Finding, Mark
from peftsweep.config.schema import TrackingConfig
from peftsweep.errors import TrackingError
from peftsweep.records.environment import read_cpu_model, read_versions
from peftsweep.records.redact import redact_forms
from peftsweep.tracking.store import open_store, resolve_uri, sqlite_path

GB = 10**9
SCARCE_DISK_BYTES, SCARCE_MEMORY_BYTES = 5 * GB, 2 * GB  # an adapter's checkpoints; the embedded model's job
ANSWER_SECONDS = 5.0
HUB = "https://huggingface.co"
LAUNCHERS = {  # Hydra's name: its package, and a program that it needs
    "joblib": ("hydra-joblib-launcher", None),
    "submitit_slurm": ("hydra-submitit-launcher", "sbatch"),
    "ray": ("hydra-ray-launcher", None),
}


def find_versions() -> Iterator[Finding]:
    """Of Python and of all that peftsweep is made of, against the versions that it is tested with."""
    yield Finding("versions", Mark.OK, ", ".join(f"{name} {found}" for name, found in read_versions().items()))
    for requirement in map(Requirement, requires("peftsweep") or []):
        if requirement.marker is not None:
            continue  # of an extra
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = "none"
        if installed == "none" or not requirement.specifier.contains(installed, prereleases=True):
            said = f"{requirement.name} {installed}, tested is {requirement.specifier}"
            yield Finding("versions", Mark.HEED, said, "pip install --upgrade peftsweep brings what it is tested with.")


def find_machine() -> Iterator[Finding]:
    """Processor, memory, GPUs and who holds their memory."""
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    said = f"{read_cpu_model()}, {cores} cores, {memory.available / GB:.1f} of {memory.total / GB:.1f} GB free"
    mark = Mark.HEED if memory.available < SCARCE_MEMORY_BYTES else Mark.OK
    yield Finding("machine", mark, said, "The smallest job takes about 1.5 GB." * (mark is Mark.HEED))
    yield from _find_gpus()


def _find_gpus() -> Iterator[Finding]:
    try:
        import pynvml
    except ImportError:
        if shutil.which("nvidia-smi"):
            fix = "pip install 'peftsweep[gpu]'"
            yield Finding("GPU", Mark.HEED, "there is a driver, but not nvidia-ml-py to ask it", fix)
        else:
            yield Finding("GPU", Mark.OK, "none: jobs run on the CPU")
        return
    try:
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            said = f"{pynvml.nvmlDeviceGetName(handle)}, {memory.free / GB:.1f} of {memory.total / GB:.1f} GB free"
            busy = memory.free < memory.total / 2
            fix = "Others hold most of it: a job is refused there, unless allow_shared_gpu=true." * busy
            yield Finding(f"GPU {index}", Mark.HEED if busy else Mark.OK, f"{said}, driver {driver}", fix)
    except pynvml.NVMLError as error:
        yield Finding("GPU", Mark.OK, f"none that a driver knows of ({error}): jobs run on the CPU")


def find_hub(address: str | None = None) -> Iterator[Finding]:
    """Whether models and data can be downloaded, and as whom."""
    from huggingface_hub import constants, get_token

    address = address or os.environ.get("HF_ENDPOINT") or HUB
    only_local = "Embedded and downloaded models work; others need a network."
    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", Mark.HEED, "switched off by HF_HUB_OFFLINE", only_local)
        return
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        yield Finding("hub", Mark.HEED, f"{redact_forms(address)} does not answer ({error})", only_local)
        return
    if get_token():
        yield Finding("hub", Mark.OK, f"{redact_forms(address)} answers, and there is a token")
    else:
        fix = "Gated models, such as Llama, need one: hf auth login."
        yield Finding("hub", Mark.HEED, f"{redact_forms(address)} answers; there is no token", fix)


def find_tracking(tracking: TrackingConfig) -> Iterator[Finding]:
    """Whether MLflow takes runs. A database that doesn't exist yet is left to the first job."""
    uri = resolve_uri(tracking.uri)
    path, shown = sqlite_path(uri), redact_forms(uri)
    if not tracking.enabled:
        yield Finding("MLflow", Mark.OK, "switched off (tracking=none)")
    elif path is not None and not path.exists():
        yield Finding("MLflow", Mark.OK, f"{shown} is made by the first job")
    else:
        try:
            open_store(uri, tracking.experiment)
            yield Finding("MLflow", Mark.OK, f"{shown} answers")
        except TrackingError as error:
            problem = error.problems[0]
            yield Finding("MLflow", Mark.FAULT, f"{shown}: {problem.rule}", problem.fix or "Check tracking.uri.")


def find_folders(outputs: Path, cache: Path) -> Iterator[Finding]:
    """Whether there is a place, and room, for what jobs write."""
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    for about, folder in {"outputs": outputs, "cache": cache, "hub's cache": hub}.items():
        above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=above):
                free = shutil.disk_usage(above).free
        except OSError as error:
            yield Finding(about, Mark.FAULT, f"{folder} can't be written ({error.strerror})", "Choose another folder.")
            continue
        mark = Mark.HEED if free < SCARCE_DISK_BYTES else Mark.OK
        yield Finding(about, mark, f"{folder}, {free / GB:.1f} GB free", "Free some." * (mark is Mark.HEED))


def find_launchers() -> Iterator[Finding]:
    """What can start a sweep's workers, beside this machine itself."""
    found = ["local"]
    for name, (package, program) in LAUNCHERS.items():
        try:
            version(package)
        except PackageNotFoundError:
            continue
        found.append(name if program is None or shutil.which(program) else f"{name} (without {program} here)")
    yield Finding("launchers", Mark.OK, ", ".join(found))
