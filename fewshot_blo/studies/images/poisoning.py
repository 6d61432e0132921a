"""Training-data poisoning: a few added images with chosen pixels spoil a classifier of digits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.solving.constraints import Box, Constraint
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


@dataclass(frozen=True)
class Poisoning(Study):
    """``G`` the mean CE of clean and poison images ``+ l2/2 |v|²``, ``F`` minus that of clean ones.

    Softmax regression without a bias: G is strongly convex. The outer variables are the pixels of
    poison images, which join the training set under a random wrong label each. F is of validation
    images, so that settings are compared by the outer loss after retraining; accuracies are of
    MNIST's own test images, which nothing else sees. Retraining starts from zeros on clean and
    poison images, and ends at the minimum.

    Attributes:
        train: clean images of the inner problem.
        validation: clean images of the outer problem.
        share: poison images as a share of the clean ones.
        l2: of the weights.

    Source: Mehra & Hamm (arXiv 1911.03432), untargeted poisoning; its code tests on 8000 images.
    """

    train: int = 1000
    validation: int = 1000
    share: float = 0.06
    l2: float = 5e-3

    def __post_init__(self) -> None:
        if not 2 <= self.count <= self.train:
            raise ConfigurationError(
                f"share is {self.share}, which makes {self.count} poison images beside "
                f"{self.train} clean ones: it must make two at least, and no more than those"
            )

    @property
    def count(self) -> int:
        """Poison images."""
        return round(self.share * self.train)

    @cached_property
    def _digits(self) -> Digits:
        # Of the third part come the images that poison starts as: enough of every digit.
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
        """Poison images start as images of digits."""
        return PlainProblem(
            {"images": self.poison.x.clone()},
            initial(self._model),
            lambda v, u: self._inner_loss(v, Labelled(u["images"], self.poison.y)),
            lambda v, u: self._outer_loss(v),
        )

    def constraints(self) -> Mapping[str, Constraint]:
        """Pixels stay between black and white."""
        return {"images": Box(0, 1)}

    def _inner_loss(self, v: Params, poison: Labelled) -> Tensor:
        clean = self._digits.parts[0]
        x, y = torch.cat([clean.x, poison.x]), torch.cat([clean.y, poison.y])
        return cross_entropy(self._model, v, x, y) + self.l2 * decay(v)

    def _outer_loss(self, v: Params) -> Tensor:
        return -cross_entropy(self._model, v, *self._digits.parts[1])

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
        """Without poison, and with wrong labels alone."""
        x, y = self.poison
        return {
            "no poison": self._after_retraining(Labelled(x[:0], y[:0])),
            "wrong labels, images unchanged": self._after_retraining(self.poison),
            **self._other_draws(),
        }

    def _other_draws(self, draws: int = 10) -> dict[str, Figures]:
        x, right = (part[: self.count] for part in self._digits.parts[2])
        # Seeds of their own: neither this study's nor those of its other runs.
        every = [
            self._after_retraining(Labelled(x, _wrong(right, 1000 * (self.seed + 1) + draw)))
            for draw in range(draws)
        ]
        means = {name: mean(figures[name] for figures in every) for name in every[0]}
        return {f"{draws} draws of wrong labels, their mean": means}

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Some of the poison images before and after, under their labels."""
        shown = torch.linspace(0, self.count - 1, min(_SHOWN, self.count)).long()
        pictures = {"before": self.poison.x[shown, 0]}
        pictures |= {name: u["images"][shown, 0] for name, u in solutions.items()}
        images(pictures, [str(int(label)) for label in self.poison.y[shown]], path)


@dataclass(frozen=True)
class TargetedPoisoning(Poisoning):
    """As untargeted, but ``F`` is the mean CE of one digit's validation images under another label.

    Half of the poison images start as either digit, under the label of the other.

    Attributes:
        train: clean images of the inner problem.
        validation: clean images, of which the outer problem sees those of one digit.
        share: poison images as a share of the clean ones.
        l2: of the weights.
        victim: the digit that is to be mistaken.
        mistaken: what it is to be mistaken for.

    Source: Mehra & Hamm (arXiv 1911.03432), targeted poisoning.
    """

    validation: int = 4000
    victim: int = 8
    mistaken: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.victim == self.mistaken or not {self.victim, self.mistaken} <= set(range(10)):
            raise ConfigurationError(
                f"victim is {self.victim} and mistaken {self.mistaken}: they are two digits"
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
        """None: the wrong labels are given."""
        del draws
        return {}


def _wrong(right: Tensor, seed: int) -> Tensor:
    """Random labels other than these, ``[M]``."""
    shift = torch.randint(1, 10, right.shape, generator=torch.Generator().manual_seed(seed))
    return (right + shift) % 10
