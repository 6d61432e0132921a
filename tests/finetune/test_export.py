"""Files that other programs run."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fewshot_blo.commands import main as cli
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.finetune import Classifier, LabelledImages, read_labelled, save_classifier
from fewshot_blo.finetune import export as export_module
from fewshot_blo.finetune.candidates import BALANCED, Candidate
from fewshot_blo.finetune.export import export, to_module
from fewshot_blo.kernel import SGD, Adam, InnerSteps

PROTOTYPES = Candidate("prototypes", head="cosine")
CANDIDATES = [
    PROTOTYPES,
    BALANCED,
    Candidate("ridge", head="ridge"),
    Candidate("head", inner=InnerSteps(5, SGD(1.0))),
    Candidate("tail", adapts="last_blocks", inner=InnerSteps(3, Adam(1e-2))),
    Candidate("low rank", adapts="low_rank", rank=1, inner=InnerSteps(3, Adam(1e-2))),
    Candidate("crops", views="crops"),
    Candidate("scales", views="scales"),
    Candidate("shifts", views="mirrored_shifts"),
    Candidate("roots", head="ridge", power=0.5),
    Candidate("crops, tail", adapts="last_blocks", views="crops", inner=InnerSteps(3, SGD(1e-2))),
    Candidate("roots, tail", adapts="last_blocks", power=0.5, inner=InnerSteps(3, SGD(1e-2))),
    Candidate("all", adapts="all", inner=InnerSteps(3, Adam(1e-2))),
]


@pytest.fixture
def make_classifier(
    make_folder: Callable[..., Path],
    fit_one: Callable[[Candidate, LabelledImages, float], Classifier],
) -> Callable[[Candidate], Classifier]:
    data = read_labelled(make_folder(3, 3, 3), 16)
    return lambda candidate: fit_one(candidate, data, 0.7)


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)
def test_plain_modules(
    candidate: Candidate, make_classifier: Callable[[Candidate], Classifier]
) -> None:
    classifier = make_classifier(candidate)
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    expected = classifier.predict(images).probabilities
    torch.testing.assert_close(to_module(classifier)(images / 255), expected)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_files(
    suffix: str,
    small_networks: str,
    make_classifier: Callable[[Candidate], Classifier],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    classifier = make_classifier(CANDIDATES[5])
    save_classifier(classifier, tmp_path / "c.pt")
    words = ["export", str(tmp_path / "c.pt"), str(tmp_path / f"m{suffix}")]
    assert cli.main([*words, f"--own={small_networks}"]) == 0
    assert "probabilities differ" in capsys.readouterr().out
    description = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert description["classes"] == list(classifier.class_names)
    assert description["image"] == [3, 16, 16]


@pytest.mark.parametrize("library", ["onnxscript", "onnxruntime"])
def test_onnx_without_its_packages(
    library: str,
    make_classifier: Callable[[Candidate], Classifier],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", types.ModuleType("onnxscript"))
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"{library} is not installed: pip install 'fewshot_blo\[onnx\]'"
    with pytest.raises(ConfigurationError, match=message):
        export(make_classifier(CANDIDATES[0]), tmp_path / "m.onnx")


def test_a_file_that_says_something_else_is_removed(
    make_classifier: Callable[[Candidate], Classifier],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(module: torch.nn.Module, images: torch.Tensor, path: Path) -> torch.Tensor:
        path.write_bytes(b"wrong")
        return torch.zeros(3, 3)

    monkeypatch.setattr(export_module, "_pt2", wrong)
    with pytest.raises(CheckpointError, match=r"probabilities of .* differ from"):
        export(make_classifier(PROTOTYPES), tmp_path / "m.pt2")
    assert not (tmp_path / "m.pt2").exists()


def test_other_names(
    small_networks: str,
    make_classifier: Callable[[Candidate], Classifier],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_classifier(make_classifier(PROTOTYPES), tmp_path / "c.pt")
    words = ["export", str(tmp_path / "c.pt"), str(tmp_path / "m.txt")]
    assert cli.main([*words, f"--own={small_networks}"]) == 1
    assert "must end in .onnx or .pt2" in capsys.readouterr().err
