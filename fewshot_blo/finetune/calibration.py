"""Probabilities from logits: a temperature, and a correction for classes of unequal size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.finetune.plays import Questions

_OFFSET = 2.4
"""Offset to expect: between 1.9 and 2.9 for two networks on CIFAR-FS and Tiny-ImageNet."""
_TRUST = 0.01
"""Weight of the squared difference from it, in units of the mean log-loss: next to nothing where
classes have different sizes, enough where all have one."""


@dataclass(frozen=True)
class Scale:
    """``softmax(logits / temperature + offset (n_c^-1/2 - mean))`` for classes of n_c images.

    The mean of few images is far from that of a class, so that new images of a small class are less
    like it than those of a large one: without the second term a small class is hardly ever
    predicted. The term fades like the standard error of the mean of a class.

    Attributes:
        temperature: divisor of the logits.
        offset: strength of the correction for sizes.
    """

    temperature: float = 1.0
    offset: float = 0.0

    def apply(self, logits: Tensor, counts: Tensor) -> Tensor:
        """Scaled logits ``[A, N]`` of logits ``[A, N]`` for training sets of such class sizes.

        Args:
            logits: the logits.
            counts: number of images of each class in training, ``[A, N]`` or ``[N]``.
        """
        return logits / self.temperature + self.offset * size_terms(counts)

    def biases(self, counts: Tensor) -> Tensor:
        """The correction in units of the logits, ``[N]``."""
        return self.temperature * self.offset * size_terms(counts)


def size_terms(counts: Tensor) -> Tensor:
    """``n_c^-1/2`` minus its mean over the classes that have images, ``[..., N]``; 0 for others."""
    present = (counts > 0).float()
    terms = present * counts.clamp(min=1).float().rsqrt()
    return terms - present * size_level(counts).unsqueeze(-1)


def size_level(counts: Tensor) -> Tensor:
    """Mean of ``n_c^-1/2`` over the classes that have images, ``[...]``."""
    present = (counts > 0).float()
    terms = present * counts.clamp(min=1).float().rsqrt()
    return terms.sum(-1) / present.sum(-1).clamp(min=1)


def fit_scale(logits: Tensor, asked: Questions, temperature: float) -> Scale:
    """The scale that maximises the likelihood of the answers, where every class counts alike.

    Args:
        logits: logits of the questions, ``[A, N]``.
        asked: the questions.
        temperature: temperature if nothing was asked.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599), section 4.2,
    for the temperature.
    """
    known = asked.judged
    if not known.any():
        return Scale(temperature, _OFFSET)
    own, labels = logits[known].double(), asked.labels[known]
    weights, terms = asked.weights[known], size_terms(asked.kept[known]).double()
    if not bool((terms != 0).any()):
        return Scale(_best(own, labels, weights), _OFFSET)

    def loss(offset: float) -> tuple[float, float]:
        shifted = own[None], offset * terms[None]
        found, value = _search(*shifted, labels, weights)
        return value + _TRUST * (offset - _OFFSET) ** 2, found

    offsets = [0.25 * step for step in range(21)]
    found = [loss(offset) for offset in offsets]
    place = min(range(len(offsets)), key=lambda i: found[i][0])
    return Scale(found[place][1], offsets[place])


def _best(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    return _search(logits[None], torch.zeros_like(logits)[None], labels, weights)[0]


def _search(logits: Tensor, shift: Tensor, labels: Tensor, weights: Tensor) -> tuple[float, float]:
    """Temperature of the lowest loss, and this loss: a logarithmic grid that is refined twice."""
    low, high = math.log(1e-2), math.log(1e3)
    best, value = 0.0, math.inf
    for _ in range(3):
        grid = torch.linspace(low, high, 41, dtype=logits.dtype)
        scaled = logits / grid.exp().reshape(-1, 1, 1) + shift
        flat = F.cross_entropy(scaled.flatten(0, 1), labels.repeat(len(grid)), reduction="none")
        losses = flat.reshape(len(grid), -1) @ weights
        place = int(losses.argmin())
        best, value = float(grid[place]), float(losses[place])
        step = (high - low) / 40
        low, high = best - step, best + step
    return math.exp(best), value
