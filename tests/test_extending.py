"""Components of one's own: one file and one name each, and they are there everywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import blocks

ROOT = Path(__file__).resolve().parents[1]
HEAD = '''"""Nearest class means under the absolute distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.heads.head import SupportSet
from fewshot_blo.heads.linear import CosineHead


@dataclass(frozen=True)
class AbsoluteHead(CosineHead):
    """``-s |x - w_n|_1 / D``.

    Attributes:
        scale: s, factor of the distances.
    """

    scale: float = 5.0

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Scaled distances to the class weights."""
        weights = params["head.weight"].unsqueeze(1)
        distance = (features.unsqueeze(2) - weights).abs().mean(-1)
        return -self.scale * distance
'''
METRIC = '''"""Whether the right class is among the two most likely ones."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewshot_blo.objectives.metric import Metric


@dataclass(frozen=True)
class Near(Metric):
    """Share of queries whose class is among the two most likely ones."""

    higher_is_better: ClassVar[bool] = True
    percent: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True

    def __call__(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        found = (outputs.topk(2).indices == targets.unsqueeze(-1)).any(-1)
        return (found & rows).sum(1) / rows.sum(1)
'''
RECIPE = """
episodes: {way: 3, query: 3, tasks: 2, validation_query: 3}
encoder: {name: Conv4, hidden: 4}
problem: {name: SharedEncoder, head: Absolute}
strategy: {name: Alternating, inner: {steps: 2}}
train: {steps: 2, validate_every: 2, validation_tasks: 2}
"""
STUDY = """
study: synthetic
settings: {example: 1}
rows:
  alternating:
    strategy: {name: Alternating, inner: {steps: 2}}
    steps: 3
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and the suite with the documents' components and a head added."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("fewshot_blo", "tasks", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "setup.cfg", folder)
    strategy, data_set = blocks("docs/guides/extending.md")[:2]
    protocol = blocks("docs/guides/protocols.md")[0]
    for home, module, text, name, names in (
        ("hypergrad/__init__.py", "alternating", strategy, "Alternating", "STRATEGIES = ("),
        ("heads/__init__.py", "absolute", HEAD, "AbsoluteHead", "HEADS = ("),
        ("objectives/__init__.py", "near", METRIC, "Near", "METRICS = ("),
        ("tasks/catalogue.py", "clouds", data_set, "Clouds", "DATA_SETS = ("),
        ("tasks/protocols/__init__.py", "long_tail", protocol, "LongTail", _PROTOCOLS),
    ):
        _add(folder, home, module, text, name, names)
    return folder


_PROTOCOLS = "PROTOCOLS: tuple[type[Protocol], ...] = ("


def _add(folder: Path, home: str, module: str, text: str, name: str, names: str) -> None:
    """Adds a module, and a name to a list in another file of its folder."""
    file = folder / "fewshot_blo" / home
    file.with_name(f"{module}.py").write_text(text, encoding="utf-8")
    package = ".".join(Path("fewshot_blo", home).parent.parts)
    listed = file.read_text(encoding="utf-8")
    assert names in listed
    line = f"from {package}.{module} import {name}\n"
    file.write_text(listed.replace(names, f"{line}{names}{name}, ", 1), encoding="utf-8")


def run(checkout: Path, *words: str) -> str:
    """What a command prints in the copy."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=checkout,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_they_are_on_the_command_line(checkout: Path, tmp_path: Path) -> None:
    said = run(checkout, "-m", "fewshot_blo", "train", "--strategy.help", "Alternating")
    assert "du = F_u(v_T)" in said
    assert "--strategy.inner.steps" in said
    assert "scaled distances" not in said
    said = run(checkout, "-m", "fewshot_blo", "train", "--problem.head.help", "Absolute")
    assert "factor of the distances" in said
    recipe = tmp_path / "alternating.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    words = ("-m", "fewshot_blo", "compare", str(recipe), "--tasks", "4", "--norm", "transductive")
    table = run(checkout, *words, "--folder", str(tmp_path / "compared"))
    assert "| alternating" in table


@pytest.mark.slow
def test_data_sets_protocols_and_metrics_are_on_the_command_line(
    checkout: Path, tmp_path: Path
) -> None:
    said = run(checkout, "-m", "fewshot_blo", "train", "--data.help", "Clouds")
    assert "standard deviation of the points of a class (at least 0) [0.5]" in said
    words = ["-m", "fewshot_blo", "train", str(tmp_path), "--data", "Clouds", "--encoder", "MLP"]
    words += ["--episodes.protocol", "LongTail", "--episodes.shot", "4", "--train.steps", "2"]
    words += ["--train.validation_tasks", "2", "--test_tasks", "2"]
    said = run(checkout, *words, "--problem.metric", "Near")
    assert "5-way 4-shot long tail, 15 queries a class" in said
    assert re.search(r"^  near \d+\.\d\d ± ", said, re.MULTILINE)


@pytest.mark.slow
def test_they_are_in_studies(checkout: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(STUDY, encoding="utf-8")
    words = ("-m", "fewshot_blo", "study", str(study), "--folder", str(tmp_path / "solved"))
    assert "alternating" in run(checkout, *words)


@pytest.mark.slow
def test_they_are_in_the_contract_suite(checkout: Path) -> None:
    chosen = "(test_equals or structural) and (Alternating or AbsoluteHead) and not unroll"
    words = ("-m", "pytest", "-q", "tests/test_contract.py", "-k", chosen, "-p", "no:cacheprovider")
    found = re.search(r"(\d+) passed", run(checkout, *words))
    assert found is not None
    assert int(found[1]) > 20
