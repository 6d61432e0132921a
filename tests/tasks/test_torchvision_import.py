from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from fewshot_blo.tasks.reading.torchvision_import import torchvision_module


def imports_end_in(outcome: Exception | ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces all imports by one outcome; returns the list of names that will be asked for."""
    asked: list[str] = []

    def import_module(name: str) -> ModuleType:
        asked.append(name)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def define(name: str, schema: str) -> None:
        raise AssertionError(f"{name}{schema} was declared")

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(torch.library, "define", define)
    return asked


def test_datasets_transforms_and_models_work() -> None:
    torchvision = torchvision_module()
    assert torchvision_module() is torchvision
    assert torchvision.datasets.Omniglot
    assert torchvision.datasets.CIFAR100
    assert torchvision.transforms.Resize(8)(torch.rand(3, 16, 16)).shape == (3, 8, 8)
    model = torchvision.models.mobilenet_v3_small().eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 1000)


@pytest.mark.slow
def test_import_is_lazy_and_repairs_a_plain_import_that_failed_before() -> None:
    code = """
import sys
import fewshot_blo.tasks.omniglot, fewshot_blo.tasks.folder
assert "torchvision" not in sys.modules
try:
    import torchvision
except RuntimeError:
    pass
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module
first = torchvision_module()
import torchvision, torchvision.transforms.v2
assert first is torchvision is torchvision_module()
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_an_absent_torchvision_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    imports_end_in(ModuleNotFoundError("no torchvision", name="torchvision"), monkeypatch)
    with pytest.raises(ImportError, match=r"torchvision is not installed.*pip install torchvision"):
        torchvision_module()


@pytest.mark.parametrize(
    "error", [RuntimeError("out of luck"), ModuleNotFoundError("no PIL", name="PIL")]
)
def test_other_failures_are_passed_on(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = imports_end_in(error, monkeypatch)
    with pytest.raises(type(error)) as caught:
        torchvision_module()
    assert caught.value is error
    assert asked == ["torchvision"]


def test_nothing_is_declared_where_the_extension_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torchvision")
    asked = imports_end_in(module, monkeypatch)
    assert torchvision_module() is module
    assert asked == ["torchvision"]
