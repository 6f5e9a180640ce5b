"""Where a job ran: results of different environments are not ranked against each other without a warning."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("peftsweep", "torch", "transformers", "peft", "datasets", "optuna", "mlflow")


def read_versions() -> dict[str, str]:
    """Of Python and the packages that matter, none of which is imported."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions | {"python": platform.python_version()}


def describe_environment() -> dict[str, str]:
    """Versions, machine and commit as flat text, for `result.json` and MLflow's parameters; what is unknown is absent.

    Never imports torch: the GPU's fields are there only where the caller, a job, has imported it already.
    """
    described = {
        **read_versions(),
        "platform": platform.platform(),
        "cpu": read_cpu_model(),
        **_describe_gpu(),
        **_own_checkout(),
    }
    return {key: value for key, value in described.items() if value}


def read_cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """`platform.processor()` is empty on most Linux systems, so the kernel is asked first."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


@cache
def _own_checkout() -> dict[str, str]:
    """Asked once a process: what it has loaded does not change with the files."""
    return describe_checkout(Path(__file__).resolve().parents[1])


def describe_checkout(folder: Path) -> dict[str, str]:
    """Commit of the git checkout whose top holds `folder`, and whether tracked files differ from it ("true", "false").

    Empty for an installed package, even one installed below somebody else's checkout (a `.venv` inside a repository).
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != folder.parent:
        return {}
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return {}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": "" if changes is None else str(bool(changes)).lower()}


def _describe_gpu() -> dict[str, str]:
    """Model, count and memory of the current CUDA device, CUDA and driver versions."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "gpu_count": str(torch.cuda.device_count()),
        "gpu_memory_bytes": str(properties.total_memory),
        "cuda": torch.version.cuda or "",
        "driver": _read_driver_version(),
        "float32_products": torch.get_float32_matmul_precision(),  # "high" is TF32
    }


def _read_driver_version() -> str:
    try:
        import pynvml
    except ImportError:
        return ""
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return ""


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command; None where git is missing, slow, or says no (no repository, another owner's folder)."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
