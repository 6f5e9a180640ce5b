"""The one-way import order of the package, read from the source of every module."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "peftsweep"
CONF = PACKAGE.parent / "conf"

# A room is a module or folder directly under peftsweep/. It may import itself and rooms of lower levels, never its own
# level's other rooms. A new file must be given a room, so that its place is a decision.
LEVELS = (
    {"errors"},
    {"config", "statistics"},
    {"records", "ranks"},
    {"modalities", "methods", "memory", "tracking"},
    {"exchange"},
    {"job"},
    {"report"},
    {"sweeps", "checkup"},
    {"commands", "api"},
    {"__main__"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# What is read or written without training anything opens on a laptop in a second: these never import what is slow.
WITHOUT_TORCH = ("config", "statistics", "records", "tracking", "report")
STORES = {"mlflow", "optuna"}  # opened where somebody asks for what is in them
HEAVY = ("torch", "transformers", "peft", "datasets", "mlflow", "optuna", "diffusers", "accelerate")

MODULES = sorted(path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py") if "conf" not in path.parts)


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse((PACKAGE.parent / path).read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, in functions and for type checking too; relative imports are not used."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""
            yield from (
                f"{node.module}.{alias.name}" for alias in node.names if is_module(f"{node.module}.{alias.name}")
            )


def imports_at_once(path: Path) -> Iterator[str]:
    """Modules that are imported as soon as a file is."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def is_module(name: str) -> bool:
    return any(module_name(path) == name for path in MODULES)


def own_imports(path: Path) -> set[str]:
    return {name for name in imports_of(path) if name.split(".")[0] == "peftsweep"}


def forbidden_imports(room: str, imported: set[str]) -> list[str]:
    level = LEVEL_OF[room]
    return sorted(
        name for name in imported if room_of(name) not in {room, ""} and LEVEL_OF.get(room_of(name), 99) >= level
    )


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_module_belongs_to_a_room(path):
    room = room_of(module_name(path))
    assert room == "" or room in LEVEL_OF


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_one_way(path):
    room = room_of(module_name(path))
    assert room == "" or forbidden_imports(room, own_imports(path)) == []


def test_an_import_upwards_or_sideways_would_be_found():
    assert forbidden_imports("methods", {"peftsweep.job.loop", "peftsweep.records.results"}) == ["peftsweep.job.loop"]
    assert forbidden_imports("methods", {"peftsweep.memory.probe"}) == ["peftsweep.memory.probe"]
    assert forbidden_imports("report", {"peftsweep.sweeps.table"}) == ["peftsweep.sweeps.table"]


def test_no_two_modules_import_each_other_even_indirectly():
    graph = {module_name(path): own_imports(path) - {module_name(path)} for path in MODULES}
    for start in graph.keys() - {"peftsweep"}:  # the package itself opens its doors only when it is asked to
        seen, waiting = set(), list(graph[start] & graph.keys())
        while waiting:
            module = waiting.pop()
            assert module != start, f"{start} imports itself through others"
            if module not in seen and module != "peftsweep":
                seen.add(module)
                waiting += graph[module] & graph.keys()


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_what_must_open_in_a_second_imports_nothing_heavy(room):
    for path in MODULES:
        if room_of(module_name(path)) == room:
            anywhere = {name.split(".")[0] for name in imports_of(path)}
            at_once = {name.split(".")[0] for name in imports_at_once(path)}
            assert anywhere.isdisjoint(set(HEAVY) - STORES)
            assert at_once.isdisjoint(HEAVY)


# Who sees a whole job's configuration, and who composes one: the edges. What trains, measures, stores and reports is
# handed the part that it needs, so that it can be read, tested and used without Hydra.
SEES_THE_JOB = {
    "commands",
    "config",
    "sweeps",
    "job.plan",
    "job.resolve",
    "job.run",
    "job.other_rank",
    "job.record",
    "job.preflight",
    "records.job_settings",
    "exchange.experiments",
    "exchange.finished",
    "modalities.base",
    "modalities.text.modality",
    "modalities.image.modality",
    "modalities.encoder.modality",
    "modalities.vision_language.modality",
}
COMPOSES = {"commands", "config", "sweeps", "job.resolve", "exchange.finished", "methods.catalog"}
COMPOSERS = {"hydra", "omegaconf"}


def outside(allowed: set[str]) -> Iterator[Path]:
    for path in MODULES:
        name = module_name(path).removeprefix("peftsweep").removeprefix(".")
        if name and not any(name == edge or name.startswith(f"{edge}.") for edge in allowed):
            yield path


def names_of(path: Path) -> set[str]:
    return {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}


def test_only_the_edge_sees_the_whole_configuration():
    assert [str(path) for path in outside(SEES_THE_JOB) if "JobConfig" in names_of(path)] == []
    assert "JobConfig" in names_of(Path("peftsweep/job/run.py"))  # the search finds what there is


def test_only_the_edge_composes_a_configuration():
    inside = {str(path) for path in outside(COMPOSES) if {n.split(".")[0] for n in imports_of(path)} & COMPOSERS}
    assert inside == set()


def test_no_module_is_a_drawer_for_anything():
    assert not {path.stem for path in MODULES} & {"utils", "util", "common", "helpers", "misc"}


@pytest.mark.parametrize(
    "module", ["__main__", "config.compose", "config.check", "config.trust", "records.results", "methods.catalog"]
)
def test_what_answers_at_once_imports_nothing_heavy(module):
    code = f"import sys, peftsweep.{module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def words_of(path: Path) -> set[str]:
    """Names and strings of a module's code; its docstrings and comments may give examples."""
    words: set[str] = set()
    for node in ast.walk(without_docstrings(tree_of(path))):
        for value in (getattr(node, field, None) for field in ("id", "attr", "name", "arg", "module", "value")):
            if isinstance(value, str):
                words |= set(re.findall(r"[a-z0-9-]+", value.lower().replace("_", "-")))
    return words


def without_docstrings(tree: ast.Module) -> ast.Module:
    tree = ast.parse(ast.unparse(tree))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = ""
    return tree


@pytest.mark.parametrize("module", ["job/run", "job/loop"])
@pytest.mark.parametrize("group", ["method", "task"])
def test_the_job_and_the_loop_name_no_method_and_no_task(module, group):
    choices = {path.stem.replace("_", "-") for path in (CONF / group).glob("*.yaml")}
    assert choices
    assert words_of(Path("peftsweep") / f"{module}.py") & choices == set()


def test_what_a_sweep_decides_knows_nothing_of_who_runs_it():
    decisions = [path for path in MODULES if module_name(path).startswith("peftsweep.sweeps.protocol.")]
    assert decisions
    for path in decisions:
        upwards = {name for name in own_imports(path) if name.startswith("peftsweep.sweeps")}
        assert all(name.startswith("peftsweep.sweeps.protocol") for name in upwards), f"{path} imports {upwards}"
