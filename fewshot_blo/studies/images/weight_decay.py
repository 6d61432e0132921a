"""Hyperparameter learning: one weight decay per parameter of a classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Positive, Width
from fewshot_blo.solving.constraints import Box, Constraint
from fewshot_blo.solving.driver import Validate
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.images.classifiers import (
    accuracy,
    cross_entropy,
    fit_to_the_end,
    initial,
    make_network,
)
from fewshot_blo.studies.images.digits import Digits, Labelled, read_digits
from fewshot_blo.studies.pictures import images
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study

TEST, LOSS, CHOSEN = "test accuracy %", "validation loss", "decay"
ON_ALL = " + retrain on all images"
_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


@checked
@dataclass(frozen=True)
class WeightDecay(Study):
    """``G = CE_train(v) + Σ_i exp(u_i) v_i² / 2``, ``F = CE_validation(v)``.

    Thousands of decays soon overfit the validation images, so that a third set is used for early
    stopping. Retraining starts from scratch and converges, with the learned decays: on the training
    images, and on all three sets, as in a final training run.

    Attributes:
        train: number of training images; few, so that decay matters.
        validation: number of validation images.
        stopping: number of images for early stopping.
        network: architecture of the classifier.
        hidden: units of the perceptron's hidden layer; 128 give about 100,000 parameters.
        decay: initial decay of every parameter.
        least: smallest decay.
        most: largest decay; the step size of SGD inner steps must be below 2 / most.

    Source: per-parameter decays as in Lorraine et al. (arXiv 1911.02590).
    """

    train: Counting = 500
    validation: Counting = 1000
    stopping: Counting = 500
    network: Literal["linear", "perceptron"] = "linear"
    hidden: Width = 128
    decay: Positive = 1e-2
    least: Positive = 1e-6
    most: Positive = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.decay <= self.most:
            raise ConfigurationError(
                f"decay is {self.decay}, least is {self.least} and most is {self.most}: they must "
                "satisfy 0 < least <= decay <= most"
            )

    @cached_property
    def _digits(self) -> Digits:
        return read_digits(self.root, (self.train, self.validation, self.stopping), self.seed)

    @cached_property
    def _model(self) -> nn.Module:
        return make_network(self.network, self.seed, hidden=self.hidden)

    def problem(self) -> PlainProblem:
        """The problem; u, the logarithms of the decays, has the names and shapes of v."""
        train, validation, _ = self._digits.parts
        v = initial(self._model)
        return PlainProblem(
            {name: torch.full_like(p, math.log(self.decay)) for name, p in v.items()},
            v,
            lambda v, u: cross_entropy(self._model, v, *train) + decays(v, u),
            lambda v, u: cross_entropy(self._model, v, *validation),
        )

    def constraints(self) -> Mapping[str, Constraint]:
        """The interval of the logarithms of the decays."""
        box = Box(math.log(self.least), math.log(self.most))
        return {name: box for name, _ in self._model.named_parameters()}

    def held_out(self) -> Validate:
        """The cross-entropy of the images for early stopping."""

        @torch.no_grad()
        def validate(outer: Params, inner: Mapping[str, Tensor]) -> float:
            return float(cross_entropy(self._model, inner, *self._digits.parts[2]))

        return validate

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """Accuracy on the test images, and F."""
        alone = self._fitted(self._digits.parts[:1], outer)
        return {
            AS_FOUND: self._figures(inner),
            RETRAINED: self._figures(alone),
            ON_ALL: self._figures(self._fitted(self._digits.parts, outer), every=True),
        }

    def baselines(self) -> Mapping[str, Figures]:
        """Training without decay, and with one decay for all parameters."""
        alone, every = self._digits.parts[:1], self._digits.parts
        fits = {size: self._fitted(alone, self._equal(size)) for size in _GRID}
        best = min(fits, key=lambda size: self._validation_loss(fits[size]))
        # The decay is added to a mean over images: the same prior has less weight with more images.
        scaled = best * self.train / (self.train + self.validation + self.stopping)
        rows = {
            "no decay": self._figures(self._fitted(alone, self._equal(0.0))),
            "one decay": {**self._figures(fits[best]), CHOSEN: best},
        }
        for name, size in (("that decay", best), ("that decay by images", scaled)):
            v = self._fitted(every, self._equal(size))
            rows[f"all images, {name}"] = {**self._figures(v, every=True), CHOSEN: size}
        return rows

    def _equal(self, size: float) -> Params:
        """Outer variables with one decay for all parameters, which may be zero."""
        log = math.log(size) if size else -math.inf
        return {name: torch.full_like(p, log) for name, p in initial(self._model).items()}

    def _fitted(self, parts: Sequence[Labelled], u: Params) -> Params:
        """Parameters trained from scratch until convergence."""
        x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return fit_to_the_end(
            initial(self._model),
            lambda v: cross_entropy(self._model, v, x, y) + decays(v, u),
        )

    def _figures(self, v: Mapping[str, Tensor], *, every: bool = False) -> dict[str, float]:
        """Test accuracy of v, and F unless v was trained on every image."""
        figures = {TEST: accuracy(self._model, v, *self._digits.test)}
        return figures if every else {**figures, LOSS: self._validation_loss(v)}

    @torch.no_grad()
    def _validation_loss(self, v: Mapping[str, Tensor]) -> float:
        return float(cross_entropy(self._model, v, *self._digits.parts[1]))

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Draws the logarithms of the pixels' decays, per digit or averaged over hidden units."""
        first = next(name for name, p in self._model.named_parameters() if p.ndim == 2)
        logs = {name: u[first].view(-1, 28, 28) for name, u in solutions.items()}
        if self.network == "linear":
            title = "Logarithms of the weight decay learned for each pixel, by digit"
            digits = [str(digit) for digit in range(10)]
            images(title, logs, digits, path, label="log decay")
        else:
            means = {name: log.mean(0, keepdim=True) for name, log in logs.items()}
            title = "Logarithms of the weight decay learned for each pixel"
            images(title, means, ["mean over units"], path, label="log decay")


def decays(v: Mapping[str, Tensor], u: Params) -> Tensor:
    """The weight decay penalty ``Σ_i exp(u_i) v_i² / 2``."""
    return 0.5 * torch.stack([(u[name].exp() * p.square()).sum() for name, p in v.items()]).sum()
