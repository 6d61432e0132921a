"""Libraries that only a part of the package needs, where they are missing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import pytest

from fewshot_blo.backbones import load_backbone
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.studies import Denoising

BACKBONES, SKLEARN = (f"'.[{e}]' in a checkout of fewshot_blo" for e in ("backbones", "sklearn"))
ESTIMATOR = "fewshot_blo.finetune.estimator"


@pytest.mark.parametrize(
    ("library", "use", "requirement"),
    [
        ("timm", lambda: load_backbone("timm:resnet18"), BACKBONES),
        ("transformers", lambda: load_backbone("hf:nobody/nothing"), "'transformers'"),
        ("sklearn.metrics", Denoising, SKLEARN),
        ("sklearn.base", lambda: importlib.import_module(ESTIMATOR), SKLEARN),
    ],
)
def test_the_error_names_the_command_that_installs_it(
    library: str, use: Callable[[], object], requirement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, ESTIMATOR, raising=False)
    monkeypatch.setitem(sys.modules, library, None)  # An import of it fails.
    with pytest.raises(ConfigurationError) as caught:
        use()
    assert str(caught.value) == f"{library} is not installed: pip install {requirement}"
