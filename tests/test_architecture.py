"""Imports go down only, strategies stand alone, and heavy libraries load when they are used."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Lowest first: a module imports from its own room and those before it.
ROOMS = (
    "errors",
    "machine",
    "records",
    "tasks",
    "bilevel",
    "kernel",
    "hypergrad",
    "objectives",
    "heads",
    "networks",
    "backbones",
    "problems",
    "solving",
    "evaluation",
    "training",
    "checks",
    "experiments",
    "models",
    "finetune",
    "studies",
    "commands",
    "__main__",
)
STRATEGIES_MAY_IMPORT = {
    "fewshot_blo.errors",
    "fewshot_blo.bilevel",
    "fewshot_blo.kernel",
    "fewshot_blo.hypergrad.balance",
    "fewshot_blo.hypergrad.constrained",
    "fewshot_blo.hypergrad.curvature",
    "fewshot_blo.hypergrad.dense",
    "fewshot_blo.hypergrad.gradients",
    "fewshot_blo.hypergrad.interior_point",
    "fewshot_blo.hypergrad.kkt",
    "fewshot_blo.hypergrad.linear_solve",
    "fewshot_blo.hypergrad.minres",
    "fewshot_blo.hypergrad.newton",
    "fewshot_blo.hypergrad.nystrom",
    "fewshot_blo.hypergrad.systems",
    "fewshot_blo.hypergrad.single_loop",
    "fewshot_blo.hypergrad.strategy",
    "fewshot_blo.hypergrad.unrolled_steps",
    "fewshot_blo.records.checked",
    "fewshot_blo.records.ranges",
    "fewshot_blo.records.shapes",
}
MODULES = sorted(
    path
    for name in ("tasks", "fewshot_blo")
    for path in ROOT.glob(f"{name}/**/*.py")
    if not path.is_relative_to(ROOT / "fewshot_blo" / "tasks")
)
every_module = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what a syntax tree imports anywhere: modules, and names from modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides its layer: import by full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache  # Many tests read the same files.
def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(path: Path) -> str:
    """``fewshot_blo.kernel.adapt`` of a module, ``fewshot_blo.tasks`` of a package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "fewshot_blo" else ("fewshot_blo", *parts))


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def room(module: str) -> int:
    name = module.split(".")[1]
    assert name in ROOMS, f"fewshot_blo.{name} has no place: give it one in ROOMS"
    return ROOMS.index(name)


def place(module: str) -> int:
    """Of a module; the package itself, whose names load when they are asked for, below commands."""
    return ROOMS.index("commands") if module == "fewshot_blo" else room(module)


def imports_up(imports: Mapping[str, set[str]]) -> list[str]:
    """Which modules import from a room above their own; the package itself re-exports."""
    return [
        f"{module} -> {name}"
        for module, names in imports.items()
        for name in sorted(names)
        if module != "fewshot_blo" and place(name) > place(module)
    ]


def circles(imports: Mapping[str, set[str]]) -> str:
    """A circle of modules that import each other, empty if there is none."""
    inner = {m: names - {m, "fewshot_blo"} for m, names in imports.items() if m != "fewshot_blo"}
    try:
        TopologicalSorter(inner).prepare()
    except CycleError as error:
        return " -> ".join(error.args[1])
    return ""


def project() -> dict[str, set[str]]:
    """By module, the modules of the project that it imports; the caller may change it."""
    return {module: set(names) for module, names in _project().items()}


@functools.cache
def _project() -> dict[str, set[str]]:
    trees = {dotted(path): syntax_tree(path) for path in MODULES}
    found: dict[str, set[str]] = {}
    for module, tree in trees.items():
        names = [name for name in imported(tree) if within(name, "fewshot_blo")]
        found[module] = {n if n in trees else n.rpartition(".")[0] for n in names}
    return found


def test_imports_go_down_only() -> None:
    assert imports_up(project()) == []


def test_there_are_no_circles() -> None:
    assert circles(project()) == ""


@pytest.mark.parametrize(
    ("module", "name", "fault"),
    [
        ("experiments.settings", "commands.train", "up"),
        ("training.checkpoint", "training.train", "circle"),
        ("evaluation.evaluate", "training.train", "up"),
        ("machine.memory", "kernel.adapt", "up"),
    ],
)
def test_the_order_would_be_noticed(module: str, name: str, fault: str) -> None:
    imports = project()
    imports[f"fewshot_blo.{module}"].add(f"fewshot_blo.{name}")
    assert bool(imports_up(imports)) == (fault == "up")
    assert circles(imports)


def test_nothing_imports_the_folder_by_its_own_name() -> None:
    # Installed as fewshot_blo.tasks: a user may have a tasks.py of their own.
    for folder in ("tasks", "fewshot_blo", "tests", "benchmarks", "scripts", "zoo"):
        for path in ROOT.glob(f"{folder}/**/*.py"):
            names = list(imported(syntax_tree(path)))
            assert not any(within(name, "tasks") for name in names), path


def test_there_are_few_rooms() -> None:
    places = (ROOT / "fewshot_blo").iterdir()
    # Links to folders without modules, released models and recipes, are no rooms.
    rooms = [p.name for p in places if p.name[0] not in "_." and p.name not in _DATA]
    assert len(rooms) <= 22


_DATA = ("released", "recipes")


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("fewshot_blo/hypergrad/[!_]*.py")), ids=lambda path: path.stem
)
def test_strategies_stand_alone(path: Path) -> None:
    for name in imported(syntax_tree(path)):
        if within(name, "fewshot_blo"):
            allowed = any(within(name, module) for module in STRATEGIES_MAY_IMPORT)
            assert allowed, f"a strategy imports {name}"


@every_module
def test_modules_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 300


@every_module
def test_torchvision_is_imported_when_used(path: Path) -> None:
    # It fails to load beside some builds of torch; tasks/reading/torchvision_import.py says why.
    for statement in syntax_tree(path).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            assert not any(within(name, "torchvision") for name in imported(statement))


OPTIONAL = {
    *("onnxruntime", "onnxscript", "optuna", "scipy", "sklearn", "timm", "transformers"),
    *("starlette", "uvicorn", "datasets", "h5py", "huggingface_hub", "pyarrow"),
}


@every_module
def test_what_the_core_does_not_require_is_imported_when_used(path: Path) -> None:
    for statement in syntax_tree(path).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            assert not {name.partition(".")[0] for name in imported(statement)} & OPTIONAL


def test_no_module_is_called_utils() -> None:
    for folder in ("tasks", "fewshot_blo", "tests", "benchmarks", "scripts"):
        assert not list(ROOT.glob(f"{folder}/**/util*.py"))


@pytest.mark.parametrize("package", ["fewshot_blo.tasks", "fewshot_blo"])
def test_importing_a_package_is_light(package: str) -> None:
    program = (
        f"import sys, {package}\n"
        "heavy = {'torchvision', 'matplotlib', 'tensorboard', 'timm', 'jsonargparse', 'scipy', "
        "'sklearn', 'jinja2', 'starlette', 'uvicorn', 'optuna'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "[]"
