"""Meta-Weight-Net: a network maps the loss of an image to its weight, on long-tailed MNIST."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, Counting, Natural, NonNegative, Width
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.images.classifiers import (
    cross_entropy,
    decay,
    fit_in_batches,
    initial,
    logits,
    make_network,
)
from fewshot_blo.studies.images.digits import Digits, Labelled, batches, read_long_tail
from fewshot_blo.studies.pictures import curves
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study

BALANCED, RARE = "balanced test accuracy %", "of the three rarest digits %"
RATIO = "weight at loss 3 over loss 0.1"


@checked
@dataclass(frozen=True)
class MetaWeightNet(Study):
    """``G = Σ_i V_u(L_i) L_i / Σ_i V_u(L_i) + l2/2 |v|²``, ``F`` the mean CE of balanced images.

    L_i is the cross-entropy of image i; V is a network with one hidden layer and a sigmoid output,
    whose parameters are u. Digit c has ``most * imbalance^(-c/9)`` training images. G depends on v
    through the weights as well. Retraining starts from scratch with V as found.

    Attributes:
        most: training images of the digit 0.
        imbalance: times as many as of the digit 9, at least 1.
        balanced: images of each digit in F.
        network: architecture of the classifier.
        hidden: units of the classifier's hidden layer.
        weighting: hidden units of V.
        l2: weight of the l2 regularisation of the classifier.
        batch: training images per inner step; 0 for all.
        updates: mini-batches of retraining and of the baselines.

    Source: Shu et al., "Meta-Weight-Net" (arXiv 1902.07379), and the authors' code for class
    imbalance, whose weights sum to 1 in a batch; digits and a perceptron for CIFAR and a ResNet.
    """

    most: Counting = 2000
    imbalance: Annotated[float, AtLeast(1)] = 100.0
    balanced: Counting = 10
    network: Literal["linear", "perceptron"] = "perceptron"
    hidden: Width = 128
    weighting: Width = 100
    l2: NonNegative = 5e-4
    batch: Natural = 100
    updates: Counting = 2000

    def __post_init__(self) -> None:
        if self.imbalance < 1 or self.most < self.imbalance:
            raise ConfigurationError(
                f"imbalance is {self.imbalance} and most {self.most}: imbalance must be at least 1 "
                "and at most most, so that every digit has an image"
            )

    @cached_property
    def counts(self) -> list[int]:
        """Training images of each digit."""
        return [round(self.most * self.imbalance ** (-digit / 9)) for digit in range(10)]

    @cached_property
    def _digits(self) -> Digits:
        return read_long_tail(self.root, (self.counts, [self.balanced] * 10), self.seed)

    @cached_property
    def _model(self) -> nn.Module:
        return make_network(self.network, self.seed, hidden=self.hidden)

    @cached_property
    def _weighting(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return nn.Sequential(
                nn.Linear(1, self.weighting), nn.ReLU(), nn.Linear(self.weighting, 1), nn.Sigmoid()
            )

    def problem(self) -> PlainProblem:
        """With random initial parameters of both networks."""
        balanced = self._digits.parts[1]
        inner_rows = batches(sum(self.counts), self.batch, 2 * self.seed)
        return PlainProblem(
            initial(self._weighting),
            initial(self._model),
            lambda v, u, rows: self._weighted(v, u, rows),
            lambda v, u: cross_entropy(self._model, v, *balanced),
            lambda step, _: inner_rows(step),
        )

    def weights(self, u: Params, losses: Tensor) -> Tensor:
        """V at losses ``[M]``."""
        found: Tensor = functional_call(self._weighting, dict(u), (losses[:, None],))
        return found[:, 0]

    def _weighted(self, v: Mapping[str, Tensor], u: Params, rows: Tensor) -> Tensor:
        """G of some images."""
        x, y = self._digits.parts[0]
        losses = F.cross_entropy(logits(self._model, v, x[rows]), y[rows], reduction="none")
        weights = self.weights(u, losses)
        return (weights * losses).sum() / weights.sum() + self.l2 * decay(v)

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """Balanced accuracies, and how much more weight a large loss has."""
        u = {name: p.detach() for name, p in outer.items()}
        low, high = self.weights(u, torch.tensor([0.1, 3.0])).tolist()
        count = sum(self.counts)
        v = self._fitted(count, lambda v, rows: self._weighted(v, u, rows))
        found = {**self._figures(inner), RATIO: high / low}
        return {AS_FOUND: found, RETRAINED: self._figures(v)}

    def baselines(self) -> Mapping[str, Figures]:
        """Plain training, weights by the number of images of a digit, and the balanced images."""
        train, balanced = self._digits.parts
        both = Labelled(*(torch.cat(pair) for pair in zip(train, balanced, strict=True)))
        return {
            "plain training": self._trained_on(train),
            "weights 1 / images of the digit": self._trained_on(train, reweighted=True),
            "balanced images alone": self._trained_on(balanced),
            "all images": self._trained_on(both),
            "all images, weights 1 / images of the digit": self._trained_on(both, reweighted=True),
        }

    def _trained_on(self, data: Labelled, *, reweighted: bool = False) -> Figures:
        x, y = data
        weight = 1 / torch.bincount(y, minlength=10).to(x.dtype) if reweighted else None

        def loss(v: Mapping[str, Tensor], rows: Tensor) -> Tensor:
            found = logits(self._model, v, x[rows])
            return F.cross_entropy(found, y[rows], weight) + self.l2 * decay(v)

        return self._figures(self._fitted(len(y), loss))

    def _fitted(self, count: int, loss: Callable[[Mapping[str, Tensor], Tensor], Tensor]) -> Params:
        return fit_in_batches(
            initial(self._model),
            loss,
            count,
            updates=self.updates,
            batch=self.batch or count,
            seed=self.seed,
        )

    @torch.no_grad()
    def _figures(self, v: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean of the accuracies of the ten digits, and of the three rarest."""
        x, y = self._digits.test
        right = (logits(self._model, v, x).argmax(1) == y).double()
        each = torch.stack([right[y == digit].mean() for digit in range(10)])
        return {BALANCED: 100 * float(each.mean()), RARE: 100 * float(each[7:].mean())}

    @torch.no_grad()
    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Draws V of each row, divided by its largest value."""
        losses = torch.linspace(0, 8, 200)
        lines = {}
        for name, u in solutions.items():
            weights = self.weights(u, losses)
            lines[name] = (losses.tolist(), (weights / weights.max()).tolist())
        label = "weight / largest weight"
        title, scales = "Learned weight over the loss", {"xscale": "linear", "yscale": "linear"}
        curves(title, lines, "loss of an image (nats)", label, path, **scales)
