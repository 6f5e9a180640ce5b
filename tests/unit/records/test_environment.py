import importlib.util
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from peftsweep.records.environment import describe_checkout, describe_environment, read_cpu_model


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    package = tmp_path / "checkout" / "package"
    package.mkdir(parents=True)
    git(package.parent, "init", "--quiet")
    (package / "code.py").write_text("x = 1\n")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "--quiet", "-m", "first")
    return package


def version_in(package: str, file: str) -> str:
    """What `package.__version__` is, without the seconds that its import takes."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    found = re.search(r"^__version__ = ['\"](.+)['\"]", Path(spec.origin).with_name(file).read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_versions_are_those_of_the_installed_packages() -> None:
    described = describe_environment()
    assert described["python"] == platform.python_version()
    assert described["cpu"]
    for package, file in {"torch": "version.py", "transformers": "__init__.py", "peft": "__init__.py"}.items():
        assert described[package] == version_in(package, file)


def test_every_value_is_text_and_none_is_empty() -> None:
    assert all(isinstance(value, str) and value for value in describe_environment().values())


def test_describing_imports_no_torch_and_names_its_version_all_the_same() -> None:
    code = (
        "import json, sys; from peftsweep.records.environment import describe_environment; d = describe_environment();"
        "print(json.dumps(['torch' in sys.modules, 'torch' in d, 'gpu' in d]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [False, True, False]


def test_gpu_fields_are_there_once_a_job_uses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        is_available=lambda: True,
        current_device=lambda: 0,
        device_count=lambda: 2,
        get_device_properties=lambda index: SimpleNamespace(name="Fast 1", total_memory=1000),
    )
    torch = SimpleNamespace(
        cuda=cuda, version=SimpleNamespace(cuda="13.0"), get_float32_matmul_precision=lambda: "high"
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    described = describe_environment()
    keys = ("gpu", "gpu_count", "gpu_memory_bytes", "cuda", "float32_products")
    assert {key: described[key] for key in keys} == {
        "float32_products": "high",
        "gpu": "Fast 1",
        "gpu_count": "2",
        "gpu_memory_bytes": "1000",
        "cuda": "13.0",
    }


def test_gpu_fields_are_absent_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False)))
    assert not {"gpu", "gpu_count", "gpu_memory_bytes", "cuda", "driver"} & set(describe_environment())


def test_a_clean_checkout_has_its_commit(checkout: Path) -> None:
    assert describe_checkout(checkout) == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": "false"}


def test_a_changed_file_makes_a_checkout_dirty(checkout: Path) -> None:
    (checkout / "code.py").write_text("x = 2\n")
    assert describe_checkout(checkout)["dirty"] == "true"


def test_an_untracked_file_does_not_make_a_checkout_dirty(checkout: Path) -> None:
    (checkout / "notes.txt").write_text("mine\n")
    assert describe_checkout(checkout)["dirty"] == "false"


def test_a_package_installed_below_another_checkout_has_no_commit(checkout: Path) -> None:
    installed = checkout / ".venv" / "site-packages" / "peftsweep"
    installed.mkdir(parents=True)
    assert describe_checkout(installed) == {}


def test_a_folder_without_git_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_checkout(tmp_path) == {}
    monkeypatch.setenv("PATH", str(tmp_path))  # git itself is missing
    assert describe_checkout(tmp_path) == {}


def test_a_repository_without_a_commit_has_none(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    package = tmp_path / "package"
    package.mkdir()
    assert describe_checkout(package) == {}


def test_cpu_model_comes_from_the_kernel_where_it_names_one(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Quick 9000\n")
    assert read_cpu_model(cpuinfo) == "Quick 9000"
    assert read_cpu_model(tmp_path / "absent")
