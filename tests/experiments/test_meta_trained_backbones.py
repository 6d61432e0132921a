"""A pretrained network that a run has trained further, taken up by name again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import make_folder

from fewshot_blo.backbones import load_backbone
from fewshot_blo.commands import main as cli
from fewshot_blo.errors import CheckpointError
from fewshot_blo.training import checkpoint

NAME = "torchvision:mobilenet_v3_small"


@pytest.mark.slow
def test_a_checkpoint_is_a_file_of_weights(tmp_path: Path) -> None:
    torch.save(load_backbone(NAME, pretrained=False).body.state_dict(), tmp_path / "w.pt")
    data = make_folder(tmp_path / "data")
    words = f"train --run {tmp_path / 'run'} --data Folder --data.root {data} --data.size 16"
    words += f" --encoder {NAME} --encoder.weights {tmp_path / 'w.pt'}"
    words += " --encoder.size 32 --problem.head Ridge --strategy.inner.steps 0 --problem.slices 4"
    words += " --episodes.way 3 --episodes.query 2 --episodes.validation_query 2"
    words += " --episodes.tasks 1 --train.steps 1 --train.validation_tasks 2"
    assert cli.main(words.split()) == 0
    file = tmp_path / "run" / "last.pt"
    trained = checkpoint.load(file)
    backbone = load_backbone(NAME, weights=file, size=32)
    before = load_backbone(NAME, weights=tmp_path / "w.pt", size=32)
    for name, p in backbone.named_parameters():
        assert torch.equal(p, trained.outer[name])
    assert any(not torch.equal(p, before.get_parameter(n)) for n, p in backbone.named_parameters())
    with pytest.raises(CheckpointError, match="does not fit ResNet"):
        load_backbone("torchvision:resnet18", weights=file)


def test_a_checkpoint_of_another_encoder(released: Path) -> None:
    with pytest.raises(CheckpointError, match="whose encoder is not a pretrained backbone"):
        load_backbone(NAME, weights=released)


@pytest.fixture
def released() -> Path:
    """A checkpoint of a small encoder."""
    folder = Path(__file__).parents[2] / "checkpoints" / "released"
    return next(iter(sorted(folder.glob("*/best.pt"))))
