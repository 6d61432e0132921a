"""Imports go down only, strategies stand alone, and heavy libraries load when they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Lowest first; a module imports from its own layer and those below.
LAYERS = (
    {"errors", "allocator"},
    {"bilevel"},
    {"kernel", "linear_solve"},
    {"hypergrad"},
    {"networks", "backbones", "tensor_files", "tasks"},
    {"problems"},
    {
        "train",
        "outer_updates",
        "run",
        "evaluate",
        "evaluation",
        "check",
        "device_check",
        "exactness",
        "checkpoint",
        "comparison",
        "chunk_candidates",
        "chunk_choice",
        "chunks",
        "interrupts",
        "logs",
        "prefetch",
        "provenance",
        "statistics",
        "suitability",
        "solve",
        "solve_run",
        "constraints",
    },
    {
        "config",
        "from_config",
        "evaluation_data",
        "evaluation_request",
        "report",
        "compare",
        "finetune",
        "studies",
        "commands",
        "cli",
        "__main__",
    },
)
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}
STRATEGIES_MAY_IMPORT = {
    "fewshot_blo.errors",
    "fewshot_blo.bilevel",
    "fewshot_blo.kernel",
    "fewshot_blo.linear_solve",
    "fewshot_blo.hypergrad.strategy",
}
MODULES = sorted(path for name in ("tasks", "fewshot_blo") for path in ROOT.glob(f"{name}/**/*.py"))
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


def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(path: Path) -> tuple[str, ...]:
    """``("fewshot_blo", "kernel", "adapt")`` of a module, ``("tasks",)`` of a package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def layer(module: tuple[str, ...]) -> int:
    """Where a module of the project stands; the package itself, which re-exports, is on top."""
    if module == ("fewshot_blo",):
        return len(LAYERS)
    name = module[1] if module[0] == "fewshot_blo" else module[0]
    assert name in LAYER, f"fewshot_blo.{name} has no layer: give it one in LAYERS"
    return LAYER[name]


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


@every_module
def test_imports_go_down_only(path: Path) -> None:
    importer = dotted(path)
    highest = layer(importer)
    for name in imported(syntax_tree(path)):
        if importer[0] == "tasks":
            assert not within(name, "fewshot_blo"), f"tasks imports {name}"
        elif within(name, "tasks") or within(name, "fewshot_blo"):
            assert layer(tuple(name.split("."))) <= highest, f"{name} stands higher"


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
    # It fails to load beside some builds of torch; `tasks.torchvision_import` says why.
    for statement in syntax_tree(path).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            assert not any(within(name, "torchvision") for name in imported(statement))


def test_no_module_is_called_utils() -> None:
    for folder in ("tasks", "fewshot_blo", "tests", "benchmarks", "scripts"):
        assert not list(ROOT.glob(f"{folder}/**/util*.py"))


@pytest.mark.parametrize("package", ["tasks", "fewshot_blo"])
def test_importing_a_package_is_light(package: str) -> None:
    program = (
        f"import sys, {package}\n"
        "heavy = {'torchvision', 'matplotlib', 'tensorboard', 'timm', 'jsonargparse'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "[]"
