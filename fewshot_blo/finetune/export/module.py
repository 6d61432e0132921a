"""A classifier as one plain PyTorch module, from pictures to probabilities."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.backbones import choose_parameters
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.export.lanczos import as_pillow
from fewshot_blo.finetune.export.rejection import Rejection, rejection

Resizing = Literal["inside", "outside"]
"""Where pictures are cropped and resized: inside the exported model, which then takes uint8
pictures of any size, or outside, by the program that uses it."""


class Deployed(nn.Module):
    """Maps images to the probabilities of N classes, and to whether they are of one of them.

    The logits are linear in l2-normalised features.

    Args:
        resize: module from pictures to images ``[B, C, S, S]`` with values 0 to 255; None if the
            module takes images with values in [0, 1].
        network: from images with values in [0, 1] to features ``[B, D]``.
        weight: weight of the logits, ``[N, D]``, divided by the temperature.
        bias: bias of the logits, ``[N]``, divided by the temperature.
        rejection: detector of images of none of the classes; None for none.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        resize: nn.Module | None,
        network: nn.Module,
        weight: Tensor,
        bias: Tensor,
        rejection: Rejection | None,
    ) -> None:
        super().__init__()
        self.resize, self.network, self.rejection = resize, network, rejection
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``probabilities`` ``[B, N]``, and with a detector ``likeness`` and ``known``, ``[B]``.

        Args:
            images: pictures ``[B, H, W, C]``, uint8, if the module resizes them, otherwise images
                ``[B, C, S, S]`` with values in [0, 1].
        """
        if self.resize is not None:
            images = self.resize(images).to(self.weight.dtype) / 255
        features = F.normalize(self.network(images))
        logits = F.linear(features, self.weight, self.bias)
        found = {"probabilities": logits.softmax(1)}
        if self.rejection is not None:
            found["likeness"], found["known"] = self.rejection(logits)
        return found


@torch.no_grad()
def to_module(classifier: Classifier, *, resizing: Resizing = "outside") -> Deployed:
    """The classifier as a plain PyTorch module that contains the adapted parameters.

    Args:
        classifier: the classifier.
        resizing: where pictures are cropped to a square and resized.

    Raises:
        ConfigurationError: if the head cannot be exported, or a classifier of features is to
            resize pictures.
    """
    problem, params = classifier.problem, classifier.params
    network = _network(classifier, problem.head.layers(params))
    weight, bias = (p[0] for p in problem.head.linear(params, problem.outer.head))
    scale = classifier.temperature
    deployed = Deployed(
        _resize(classifier) if resizing == "inside" else None,
        network,
        weight / scale,
        bias / scale,
        rejection(classifier),
    )
    return deployed.requires_grad_(False).eval()


def takes_pictures(classifier: Classifier) -> bool:
    """Whether it classifies square pictures, RGB or grey, rather than features."""
    channels, height, width = classifier.image
    return channels in (1, 3) and height == width > 1


def _resize(classifier: Classifier) -> nn.Module:
    if not takes_pictures(classifier):
        raise ConfigurationError(
            f"the classifier takes arrays {list(classifier.image)}, which are not square pictures, "
            "so that they cannot be resized: use to_module with resizing 'outside'"
        )
    return as_pillow(classifier.size)


def _network(classifier: Classifier, layers: Mapping[str, Tensor]) -> nn.Module:
    """The network with its adapted layers, whose parameters are ``[1, ...]`` each."""
    candidate = classifier.candidate
    network, names = choose_parameters(
        candidate.seeing(classifier.backbone),
        candidate.adapts,
        blocks=candidate.blocks,
        rank=candidate.rank,
    )
    network = copy.deepcopy(network).eval()
    parameters = dict(network.named_parameters())
    for name, own in zip(names, layers.values(), strict=True):
        parameters[name].copy_(own[0])
    return network
