"""Data cleaning of MNIST as in the benchmark of bilevel solvers: a weight for every image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Above, AtMost, Counting, Natural, NonNegative
from fewshot_blo.solving.driver import Observe
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.blocks import slices
from fewshot_blo.studies.images.classifiers import fit_to_the_end
from fewshot_blo.studies.images.digits import Digits, Labelled, read_digits, seed_of
from fewshot_blo.studies.pictures import histograms
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study

TEST, VALIDATION = "test error %", "validation error %"
RIGHT, WRONG = "mean weight, right labels", "mean weight, wrong labels"


@checked
@dataclass(frozen=True)
class Cleaning(Study):
    """``G = mean_i σ(u_i) CE_i(v) + reg |v|²``, ``F`` the mean CE of clean images.

    Softmax regression without biases on pixels that are scaled to mean 0 and deviation 1 over the
    training images. Retraining minimises G of all images for the u that was found.

    Attributes:
        train: images, whose labels are partly replaced.
        validation: clean images.
        noise: probability that a label is replaced by one of the ten at random.
        reg: of the weights, without the factor 1/2.
        batch: images in a block of either level; the last ones may have one less. 0 for all.
        logit: u at the start.

    Source: the data cleaning of Dagréou et al. (arXiv 2201.13409) with the sizes, noise, scaling,
    regularisation and start of their benchmark, benchopt/benchmark_bilevel.
    """

    train: Counting = 20000
    validation: Counting = 5000
    noise: Annotated[float, Above(0), AtMost(1)] = 0.5
    reg: NonNegative = 0.2
    batch: Natural = 64
    logit: float = -2.0

    @cached_property
    def _digits(self) -> Digits:
        """With pixels in rows ``[M, 784]``, scaled."""
        digits = read_digits(self.root, (self.train, self.validation), self.seed)
        deviation, mean = torch.std_mean(digits.parts[0].x.flatten(1), 0, correction=0)
        deviation = torch.where(deviation == 0, 1, deviation)

        def scaled(part: Labelled) -> Labelled:
            return Labelled((part.x.flatten(1) - mean) / deviation, part.y)

        return Digits([scaled(part) for part in digits.parts], scaled(digits.test))

    @cached_property
    def labels(self) -> Tensor:
        """Of the training images, partly replaced, ``[train]``."""
        right = self._digits.parts[0].y
        generator = torch.Generator().manual_seed(seed_of(self.seed, 1))
        replaced = torch.rand(len(right), generator=generator) < self.noise
        return torch.where(replaced, torch.randint(0, 10, right.shape, generator=generator), right)

    @cached_property
    def wrong(self) -> Tensor:
        """Which training images have a wrong label, ``[train]``."""
        return self.labels != self._digits.parts[0].y

    def problem(self) -> PlainProblem:
        """From zero weights and equal logits."""
        clean = self._digits.parts[1]

        def outer_loss(v: Params, u: Params, rows: slice) -> Tensor:
            del u
            return F.cross_entropy(clean.x[rows] @ v["weight"], clean.y[rows])

        return PlainProblem(
            {"logit": torch.full((self.train,), self.logit)},
            {"weight": torch.zeros(784, 10)},
            lambda v, u, rows: self._inner_loss(v, u["logit"][rows].sigmoid(), rows),
            outer_loss,
            inner_blocks=slices(self.train, self.batch),
            outer_blocks=slices(self.validation, self.batch),
            seed=self.seed,
        )

    def _inner_loss(self, v: Params, weights: Tensor, rows: slice) -> Tensor:
        """G of some images with their weights."""
        logits = self._digits.parts[0].x[rows] @ v["weight"]
        losses = F.cross_entropy(logits, self.labels[rows], reduction="none")
        return (weights * losses).mean() + self.reg * v["weight"].square().sum()

    def observe(self) -> Observe:
        """The test error."""
        return lambda outer, inner: {TEST: _error(inner, self._digits.test)}

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """Errors, and the weights of right and wrong labels."""
        weights = outer["logit"].sigmoid()
        means = {
            RIGHT: float(weights[~self.wrong].double().mean()),
            WRONG: float(weights[self.wrong].double().mean()),
        }
        return {AS_FOUND: {**self._errors(inner), **means}, RETRAINED: self._fitted(weights)}

    def baselines(self) -> Mapping[str, Figures]:
        """The minimisers of G with equal weights, and with right labels alone."""
        equal = torch.full((self.train,), self.logit).sigmoid()
        return {
            "equal weights": self._fitted(equal),
            "oracle: right labels alone": self._fitted((~self.wrong).float()),
        }

    def _errors(self, v: Params) -> Figures:
        return {TEST: _error(v, self._digits.test), VALIDATION: _error(v, self._digits.parts[1])}

    def _fitted(self, weights: Tensor) -> Figures:
        start = {"weight": torch.zeros(784, 10)}
        v = fit_to_the_end(start, lambda v: self._inner_loss(v, weights, slice(None)))
        return self._errors(v)

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Histograms of the weights of right and wrong labels."""
        weights = {name: u["logit"].sigmoid() for name, u in solutions.items()}
        groups = {"right label": ~self.wrong, "wrong label": self.wrong}
        title = "Learned weights of training images with right and wrong labels"
        histograms(title, weights, groups, "weight of an image", path)


@torch.no_grad()
def _error(v: Params, part: Labelled) -> float:
    """Per cent of images whose label has not the largest logit."""
    return 100 * float(((part.x @ v["weight"]).argmax(1) != part.y).double().mean())
