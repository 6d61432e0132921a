"""A small backbone by name, and folders of images."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_images import NAMES, network, picture
from torch import nn

from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.finetune import Classifier, LabelledImages, Source
from fewshot_blo.finetune.calibration import Scale
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.finetune.classifier import fit_classifier


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the backbone, as ``module:function``."""
    module: Any = types.ModuleType("small_networks")
    module.network, module.unsized = network, lambda: nn.Conv2d(3, 4, 3)
    monkeypatch.setitem(sys.modules, "small_networks", module)
    return "small_networks:network"


@pytest.fixture
def fit_one(small_networks: str) -> Callable[[Candidate, LabelledImages, float], Classifier]:
    """Fine-tunes the small backbone on all images, as a candidate says, with a temperature."""
    source = Source(small_networks)
    backbone = source.load()

    def make(candidate: Candidate, data: LabelledImages, temperature: float) -> Classifier:
        network = candidate.problem(backbone, data.images.shape[1:]).network
        features = embed(network, data.images)
        return fit_classifier(candidate, backbone, source, data, features, Scale(temperature))

    return make


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder of so many images of each class."""

    def make(*counts: int, name: str = "images") -> Path:
        root = tmp_path / name
        for colour, count in enumerate(counts):
            folder = root / NAMES[colour]
            folder.mkdir(parents=True)
            for number in range(count):
                picture(colour, number).save(folder / f"{number}.png")
        return root

    return make
