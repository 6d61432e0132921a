"""Training-data poisoning: learns pixels of added images that degrade a classifier of digits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Annotated

import torch
from torch import Tensor, nn

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Counting, NonNegative, Share
from fewshot_blo.solving.constraints import Box, Constraint
from fewshot_blo.solving.driver import Observe
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.images.classifiers import (
    accuracy,
    cross_entropy,
    decay,
    fit_to_the_end,
    initial,
    logits,
    make_network,
)
from fewshot_blo.studies.images.digits import Digits, Labelled, read_digits
from fewshot_blo.studies.pictures import images
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study

TEST, OUTER_LOSS = "test accuracy %", "outer loss"
_SHOWN = 12


@checked
@dataclass(frozen=True)
class Poisoning(Study):
    """``G`` the mean CE of clean and poison images ``+ l2/2 |v|²``, ``F`` minus that of clean ones.

    The classifier is softmax regression without a bias, so that G is strongly convex. The outer
    variables are the pixels of poison images, which are added to the training set with random wrong
    labels. F uses validation images, so that settings can be compared by the outer loss after
    retraining; accuracies are on MNIST's test images, which are used for nothing else. Retraining
    starts at zero weights, on clean and poison images, and converges to the minimum.

    Attributes:
        train: number of clean training images.
        validation: number of clean validation images.
        share: number of poison images divided by that of clean training images.
        l2: weight of the l2 regularisation.

    Source: Mehra & Hamm (arXiv 1911.03432), untargeted poisoning; its code tests on 8000 images.
    """

    train: Counting = 1000
    validation: Counting = 1000
    share: Share = 0.06
    l2: NonNegative = 5e-3

    def __post_init__(self) -> None:
        if not 2 <= self.count <= self.train:
            raise ConfigurationError(
                f"share is {self.share}, which gives {self.count} poison images for {self.train} "
                "clean ones: the number must be at least 2 and at most that of clean ones"
            )

    @property
    def count(self) -> int:
        """Number of poison images."""
        return round(self.share * self.train)

    @cached_property
    def _digits(self) -> Digits:
        # Poison starts as images of the third part, which has enough of every digit.
        return read_digits(self.root, (self.train, self.validation, 10 * self.count), self.seed)

    @cached_property
    def _model(self) -> nn.Module:
        return make_network("linear", self.seed, bias=False)

    @cached_property
    def poison(self) -> Labelled:
        """Poison images before the attack, ``[M, 1, 28, 28]``, with their wrong labels ``[M]``."""
        x, right = (part[: self.count] for part in self._digits.parts[2])
        return Labelled(x, _wrong(right, self.seed))

    def problem(self) -> PlainProblem:
        """The problem; poison images start as images of digits."""
        return PlainProblem(
            {"images": self.poison.x.clone()},
            initial(self._model),
            lambda v, u: self._inner_loss(v, Labelled(u["images"], self.poison.y)),
            lambda v, u: self._outer_loss(v),
        )

    def constraints(self) -> Mapping[str, Constraint]:
        """Pixels stay in [0, 1]."""
        return {"images": Box(0, 1)}

    def _inner_loss(self, v: Params, poison: Labelled) -> Tensor:
        clean = self._digits.parts[0]
        x, y = torch.cat([clean.x, poison.x]), torch.cat([clean.y, poison.y])
        return cross_entropy(self._model, v, x, y) + self.l2 * decay(v)

    def _outer_loss(self, v: Params) -> Tensor:
        return -cross_entropy(self._model, v, *self._digits.parts[1])

    def observe(self) -> Observe:
        """F after retraining: v as found may have been trained on F."""

        def retrained(outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, float]:
            del inner
            poison = Labelled(outer["images"], self.poison.y)
            return {"outer loss, retrained": self._after_retraining(poison)[OUTER_LOSS]}

        return retrained

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """Accuracy on the test images, and F."""
        again = self._after_retraining(Labelled(outer["images"], self.poison.y))
        return {AS_FOUND: self._figures(inner), RETRAINED: again}

    def _after_retraining(self, poison: Labelled) -> dict[str, float]:
        start = initial(self._model)
        return self._figures(fit_to_the_end(start, lambda v: self._inner_loss(v, poison)))

    def _figures(self, v: Params) -> dict[str, float]:
        right = accuracy(self._model, v, *self._digits.test)
        return {TEST: right, OUTER_LOSS: float(self._outer_loss(v))}

    def baselines(self) -> Mapping[str, Figures]:
        """Training without poison, and with wrong labels on unchanged images."""
        x, y = self.poison
        return {
            "no poison": self._after_retraining(Labelled(x[:0], y[:0])),
            "wrong labels, images unchanged": self._after_retraining(self.poison),
            **self._other_draws(),
        }

    def _other_draws(self, draws: int = 10) -> dict[str, Figures]:
        x, right = (part[: self.count] for part in self._digits.parts[2])
        # Seeds that differ from those of all runs of this study.
        every = [
            self._after_retraining(Labelled(x, _wrong(right, 1000 * (self.seed + 1) + draw)))
            for draw in range(draws)
        ]
        means = {name: mean(figures[name] for figures in every) for name in every[0]}
        return {f"{draws} draws of wrong labels, their mean": means}

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Draws some of the poison images before and after the attack, with their labels."""
        shown = torch.linspace(0, self.count - 1, min(_SHOWN, self.count)).long()
        pictures = {"before": self.poison.x[shown, 0]}
        pictures |= {name: u["images"][shown, 0] for name, u in solutions.items()}
        labels = [str(int(label)) for label in self.poison.y[shown]]
        images("Poison images, each below the label that it is given", pictures, labels, path)


@checked
@dataclass(frozen=True)
class TargetedPoisoning(Poisoning):
    """``F`` is the mean CE of one digit's validation images with the label of another digit.

    G is that of untargeted poisoning. Half of the poison images start as images of each of the two
    digits, with the label of the other.

    Attributes:
        train: number of clean training images.
        validation: number of clean validation images; F uses those of one digit.
        share: number of poison images divided by that of clean training images.
        l2: weight of the l2 regularisation.
        victim: digit that is to be misclassified.
        mistaken: digit that it is to be classified as.

    Source: Mehra & Hamm (arXiv 1911.03432), targeted poisoning.
    """

    validation: Counting = 4000
    victim: Annotated[int, AtLeast(0), AtMost(9)] = 8
    mistaken: Annotated[int, AtLeast(0), AtMost(9)] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.victim == self.mistaken or not {self.victim, self.mistaken} <= set(range(10)):
            raise ConfigurationError(
                f"victim is {self.victim} and mistaken is {self.mistaken}: they must be two "
                "different digits"
            )

    @cached_property
    def poison(self) -> Labelled:
        """Poison images before the attack, ``[M, 1, 28, 28]``, with their wrong labels ``[M]``."""
        x, right = self._digits.parts[2]
        half = self.count // 2
        shares = {self.victim: half, self.mistaken: self.count - half}
        rows = [(right == digit).nonzero()[:count, 0] for digit, count in shares.items()]
        labels = [torch.full_like(rows[0], self.mistaken), torch.full_like(rows[1], self.victim)]
        return Labelled(x[torch.cat(rows)], torch.cat(labels))

    def _outer_loss(self, v: Params) -> Tensor:
        x, y = self._digits.parts[1]
        victims = x[y == self.victim]
        wanted = torch.full((len(victims),), self.mistaken)
        return cross_entropy(self._model, v, victims, wanted)

    def _figures(self, v: Params) -> dict[str, float]:
        x, y = self._digits.test
        found = logits(self._model, v, x[y == self.victim]).argmax(1)
        success = 100 * float((found == self.mistaken).double().mean())
        return {f"{self.victim} taken for {self.mistaken} %": success, **super()._figures(v)}

    def _other_draws(self, draws: int = 10) -> dict[str, Figures]:
        """No other draws, because the wrong labels are not random."""
        del draws
        return {}


def _wrong(right: Tensor, seed: int) -> Tensor:
    """Random wrong labels ``[M]`` for correct ones."""
    shift = torch.randint(1, 10, right.shape, generator=torch.Generator().manual_seed(seed))
    return (right + shift) % 10
