"""Exports a classifier for use without this package: a plain module, torch.export or ONNX."""

from __future__ import annotations

import copy
import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.backbones import choose_parameters
from fewshot_blo.errors import CheckpointError, ConfigurationError, installed_by
from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.records.files import atomic_write

_TOLERANCE = 1e-4


class Deployed(nn.Module):
    """Maps images ``[B, C, S, S]`` with values in [0, 1] to probabilities ``[B, N]``.

    The logits are linear in l2-normalised features.

    Args:
        encoder: network from images to features ``[B, D]``.
        weight: weight of the logits, ``[N, D]``.
        bias: bias of the logits, ``[N]``.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, encoder: nn.Module, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities ``[B, N]`` of images ``[B, C, S, S]``."""
        features = F.normalize(self.encoder(images))
        return F.linear(features, self.weight, self.bias).softmax(1)


@torch.no_grad()
def to_module(classifier: Classifier) -> Deployed:
    """The classifier as a plain PyTorch module that contains the adapted parameters.

    Raises:
        ConfigurationError: if the head cannot be exported.
    """
    candidate, params = classifier.candidate, classifier.params
    network, names = choose_parameters(
        candidate.seeing(classifier.backbone),
        candidate.adapts,
        blocks=candidate.blocks,
        rank=candidate.rank,
    )
    network = copy.deepcopy(network).eval()
    parameters = dict(network.named_parameters())
    problem = classifier.problem
    for name, own in zip(names, problem.head.layers(params).values(), strict=True):
        parameters[name].copy_(own[0])
    weight, bias = (p[0] for p in problem.head.linear(params, problem.outer.head))
    deployed = Deployed(network, weight / classifier.temperature, bias / classifier.temperature)
    return deployed.requires_grad_(False).eval()


def export(classifier: Classifier, path: Path) -> float:
    """Writes a file for deployment, and compares its probabilities with the classifier's.

    Class names and image shape are written to a ``.json`` file of the same name.

    Args:
        classifier: the classifier.
        path: file to write: ``.onnx`` for ONNX, which is checked with onnxruntime, or ``.pt2`` for
            torch.export.

    Returns:
        The largest absolute difference of a probability on three random images.

    Raises:
        CheckpointError: if this difference is above 1e-4.
        ConfigurationError: if the name has another ending, or a package is not installed.
    """
    module = to_module(classifier)
    images = torch.rand(3, *classifier.image, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(images)
    if path.suffix == ".onnx":
        found = _onnx(module, images, path)
    elif path.suffix == ".pt2":
        found = _pt2(module, images, path)
    else:
        raise ConfigurationError(f"{path} must end in .onnx or .pt2")
    difference = float((found - expected).abs().max())
    if not difference <= _TOLERANCE:
        path.unlink()
        raise CheckpointError(
            f"the probabilities of {path.name} differ from the classifier's by {difference:.1e}, "
            f"more than {_TOLERANCE:g}; the file was removed"
        )
    description = {
        "classes": list(classifier.class_names),
        "image": list(classifier.image),
        "values": "RGB in [0, 1]",
        "backbone": classifier.source.name,
    }
    with atomic_write(path.with_suffix(".json")) as file:
        file.write(json.dumps(description, indent=1, ensure_ascii=False).encode())
    return difference


def _exported(module: nn.Module, images: Tensor) -> Any:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(module, (images,), dynamic_shapes={"images": {0: batch}})


def _pt2(module: nn.Module, images: Tensor, path: Path) -> Tensor:
    with atomic_write(path) as file:
        torch.export.save(_exported(module, images), file)
    found: Tensor = torch.export.load(path).module()(images)
    return found


def _onnx(module: nn.Module, images: Tensor, path: Path) -> Tensor:
    with installed_by("fewshot_blo[onnx]"):
        importlib.import_module("onnxscript")
        runtime: Any = importlib.import_module("onnxruntime")
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of the exporter's own use of PyTorch.
        program = torch.onnx.export(
            _exported(module, images), input_names=["images"], output_names=["probabilities"]
        )
        assert program is not None
        content = program.model_proto.SerializeToString()
    with atomic_write(path) as file:
        file.write(content)
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    one_by_one = [session.run(None, {"images": image[None].numpy()})[0] for image in images]
    return torch.from_numpy(np.concatenate(one_by_one))
