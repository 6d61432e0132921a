"""Dataset distillation: learns a few synthetic images to train a classifier of digits on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Counting, Natural, NonNegative, Width
from fewshot_blo.solving.constraints import Box, Constraint
from fewshot_blo.solving.driver import Observe, Validate
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.images.classifiers import (
    NetworkName,
    accuracy,
    cross_entropy,
    decay,
    fit_in_batches,
    initial,
    make_network,
    updates_of,
)
from fewshot_blo.studies.images.digits import Digits, Labelled, batches, read_digits, seed_of
from fewshot_blo.studies.pictures import images
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study

TEST, SPREAD = "test accuracy %", "± over initial weights"


@checked
@dataclass(frozen=True)
class Distillation(Study):
    """``G`` the mean CE of synthetic images + l2/2 |v|², ``F`` the mean CE of real ones.

    The images are the outer variables. They start as noise and stay in [0, 1]; their labels are
    fixed. Of all recorded outer steps the one whose v has the lowest error on validation images is
    kept. Retraining starts from initial weights that were not used in training.

    With a warm start v learns from all images that occurred during the run. With a fixed cold start
    the images may fit these initial weights only; with fresh ones they must suit any.

    Attributes:
        per_class: synthetic images per digit.
        train: number of real images for the outer loss.
        validation: number of real images that select the best outer step.
        network: architecture of the classifier.
        hidden: units of the classifier's hidden layer.
        l2: weight of the l2 regularisation of the classifier.
        batch: real images per mini-batch; 0 for all.
        cold: start of inner problems that are not warm: "fixed" for the same initial weights in all
            outer steps, "fresh" for new ones in each.
        retrainings: number of initial weights for retraining; figures are means over them.
        retraining_steps: steps of retraining on all synthetic images, with a cosine schedule.

    Source: Vicol et al. (arXiv 2212.14032), table 3, which has the fixed start.
    """

    per_class: Annotated[int, AtLeast(1), AtMost(1000)] = 1
    train: Counting = 55000
    validation: Counting = 5000
    network: NetworkName = "perceptron"
    hidden: Width = 128
    l2: NonNegative = 1e-3
    batch: Natural = 500
    cold: Literal["fixed", "fresh"] = "fixed"
    retrainings: Counting = 5
    retraining_steps: Counting = 500

    def __post_init__(self) -> None:
        if self.network == "linear" and self.cold == "fresh":
            raise ConfigurationError(
                "cold is fresh and network is linear, whose initial weights are always zero: "
                "choose another network, or set cold to fixed"
            )

    @cached_property
    def _digits(self) -> Digits:
        return read_digits(self.root, (self.train, self.validation), self.seed)

    @cached_property
    def _model(self) -> nn.Module:
        return make_network(self.network, self.seed, hidden=self.hidden)

    @cached_property
    def labels(self) -> Tensor:
        """Labels of the synthetic images, the ten digits repeated, ``[10 per_class]``."""
        return torch.arange(10).repeat(self.per_class)

    def _start(self, number: int) -> Params:
        """Initial weights: number 0 is the fixed start, then retraining, then fresh starts."""
        seed = seed_of(self.seed, number)
        return initial(make_network(self.network, seed, hidden=self.hidden))

    def problem(self) -> PlainProblem:
        """The problem; the images start as uniform noise."""
        real = self._digits.parts[0]
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(10 * self.per_class, 1, 28, 28, generator=generator)

        def inner_loss(v: Params, u: Params) -> Tensor:
            return self._loss(v, Labelled(u["images"], self.labels))

        def outer_loss(v: Params, u: Params, rows: Tensor) -> Tensor:
            return cross_entropy(self._model, v, real.x[rows], real.y[rows])

        fresh = self.cold == "fresh"
        return PlainProblem(
            {"images": noise},
            self._start(0),
            inner_loss,
            outer_loss,
            outer_batches=batches(self.train, self.batch, self.seed),
            inner_starts=(lambda step: self._start(1 + self.retrainings + step)) if fresh else None,
        )

    def _loss(self, v: Params, part: Labelled) -> Tensor:
        return cross_entropy(self._model, v, *part) + self.l2 * decay(v)

    def constraints(self) -> Mapping[str, Constraint]:
        """Pixels stay in [0, 1]."""
        return {"images": Box(0.0, 1.0)}

    def held_out(self) -> Validate:
        """The error on the validation images in %."""
        return lambda _, v: 100 - accuracy(self._model, v, *self._digits.parts[1])

    def observe(self) -> Observe:
        """The error on the validation images after training on the synthetic ones alone."""

        def retrained(outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, float]:
            del inner
            v = self._fitted(Labelled(outer["images"], self.labels), self._start(1))
            right = accuracy(self._model, v, *self._digits.parts[1])
            return {"validation error, retrained, %": 100 - right}

        return retrained

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """Test accuracy of v as found, and of networks trained on the synthetic images."""
        found = {TEST: accuracy(self._model, inner, *self._digits.test)}
        distilled = Labelled(outer["images"], self.labels)
        return {AS_FOUND: found, RETRAINED: self._trained_on([distilled])}

    def baselines(self) -> Mapping[str, Figures]:
        """Training on random real images, on the mean image of each class, and on all images."""
        x, y = self._digits.parts[0]
        drawn = [self._random(number) for number in range(self.retrainings)]
        means = torch.stack([x[y == digit].mean(0) for digit in range(10)])
        v = fit_in_batches(
            self._start(0),
            lambda v, rows: cross_entropy(self._model, v, x[rows], y[rows]),
            self.train,
            updates=updates_of(5, self.train, 100),
            batch=100,
            learning_rate=3e-3,
        )
        return {
            f"random real images, {self.per_class} a class": self._trained_on(drawn),
            "mean image of each class": self._trained_on([Labelled(means, torch.arange(10))]),
            "all real images": {TEST: accuracy(self._model, v, *self._digits.test)},
        }

    def _random(self, number: int) -> Labelled:
        """As many real images of each digit as there are synthetic ones."""
        x, y = self._digits.parts[0]
        generator = torch.Generator().manual_seed(seed_of(self.seed, number))
        order = torch.randperm(len(y), generator=generator)
        rows = [order[y[order] == digit][: self.per_class] for digit in range(10)]
        return Labelled(x[torch.cat(rows)], y[torch.cat(rows)])

    def _trained_on(self, parts: list[Labelled]) -> dict[str, float]:
        """Mean test accuracy over initial weights; the parts are used in turn."""
        found = []
        for number in range(self.retrainings):
            v = self._fitted(parts[number % len(parts)], self._start(1 + number))
            found.append(accuracy(self._model, v, *self._digits.test))
        return {TEST: mean(found), SPREAD: stdev(found) if len(found) > 1 else 0.0}

    def _fitted(self, part: Labelled, start: Params) -> Params:
        return fit_in_batches(
            start,
            lambda v, rows: self._loss(v, Labelled(part.x[rows], part.y[rows])),
            len(part.y),
            updates=self.retraining_steps,
            batch=len(part.y),
        )

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Draws the first synthetic image of each digit."""
        rows = {name: u["images"][:10, 0] for name, u in solutions.items()}
        title = "The first distilled image of each digit"
        images(title, rows, [str(digit) for digit in range(10)], path)
