"""Reweighting of sources of data, some of which have noisy labels: one weight per source."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError, installed_by
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Above, AtLeast, AtMost, Counting, Natural, NonNegative
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
from fewshot_blo.studies.images.digits import Digits, batches, read_digits, seed_of
from fewshot_blo.studies.pictures import curves
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study

TEST, AUC, RANKS = "test accuracy %", "AUC of clean sources", "rank correlation with noise"


@checked
@dataclass(frozen=True)
class SourceReweighting(Study):
    """``G = Σ_s softmax(u)_s mean_{i in s} CE_i(v) + l2/2 |v|²``, ``F`` the mean CE on clean ones.

    Softmax regression. The first half of the sources is clean. In the others each label is wrong
    with a probability that grows evenly from ``least_noise`` to ``most_noise``. Retraining
    minimises G for the u that was found.

    Attributes:
        sources: number of sources, even.
        images: training images of each source.
        validation: clean images of F.
        least_noise, most_noise: of the noisy sources, in (0, 1].
        l2: weight of the l2 regularisation.
        batch: images per mini-batch at both levels; 0 for all.

    Source: weights of data sources as in ScaleBiO (ACL 2025), which learns them for language
    models; data and noise are our own.
    """

    sources: Annotated[int, AtLeast(2), AtMost(1000)] = 20
    images: Counting = 250
    validation: Counting = 500
    least_noise: Annotated[float, Above(0), AtMost(1)] = 0.1
    most_noise: Annotated[float, Above(0), AtMost(1)] = 0.9
    l2: NonNegative = 1e-3
    batch: Natural = 0

    def __post_init__(self) -> None:
        if self.sources < 2 or self.sources % 2:
            raise ConfigurationError(
                f"sources is {self.sources}: it must be even and at least 2, half of them clean"
            )
        if not 0 < self.least_noise <= self.most_noise <= 1:
            raise ConfigurationError(
                f"least_noise is {self.least_noise} and most_noise {self.most_noise}: they must "
                "satisfy 0 < least_noise <= most_noise <= 1"
            )
        with installed_by(".[sklearn]"):  # Needed by measure: fail before the first step.
            importlib.import_module("sklearn.metrics")

    @cached_property
    def noise(self) -> Tensor:
        """Probability of a wrong label in each source, ``[sources]``."""
        half = self.sources // 2
        return torch.cat(
            [torch.zeros(half), torch.linspace(self.least_noise, self.most_noise, half)]
        )

    @cached_property
    def _digits(self) -> Digits:
        return read_digits(self.root, (self.sources * self.images, self.validation), self.seed)

    @cached_property
    def _model(self) -> nn.Module:
        return make_network("linear", self.seed)

    @cached_property
    def source(self) -> Tensor:
        """Of each training image, ``[sources * images]``."""
        return torch.arange(self.sources * self.images) % self.sources

    @cached_property
    def labels(self) -> Tensor:
        """Of the training images, some of them wrong, ``[sources * images]``."""
        right = self._digits.parts[0].y
        generator = torch.Generator().manual_seed(seed_of(self.seed, 1))
        wrong = torch.rand(len(right), generator=generator) < self.noise[self.source]
        shift = torch.randint(1, 10, right.shape, generator=generator)
        return torch.where(wrong, (right + shift) % 10, right)

    def problem(self) -> PlainProblem:
        """From equal weights and zero parameters."""
        validation = self._digits.parts[1]
        inner_rows = batches(len(self.source), self.batch, 2 * self.seed)

        def inner_loss(v: Params, u: Params, rows: Tensor) -> Tensor:
            return self._inner_loss(v, u["logit"].softmax(0), rows)

        def outer_loss(v: Params, u: Params, rows: Tensor) -> Tensor:
            del u
            return cross_entropy(self._model, v, validation.x[rows], validation.y[rows])

        return PlainProblem(
            {"logit": torch.zeros(self.sources)},
            initial(self._model),
            inner_loss,
            outer_loss,
            lambda step, _: inner_rows(step),
            batches(self.validation, self.batch, 2 * self.seed + 1),
        )

    def _inner_loss(self, v: Params, weights: Tensor, rows: Tensor | slice) -> Tensor:
        """G of some images, with the weights of the sources ``[sources]``."""
        found = logits(self._model, v, self._digits.parts[0].x[rows])
        losses = F.cross_entropy(found, self.labels[rows], reduction="none")
        # Sources have equally many images, so that a mean over images has 1/sources in it.
        return self.sources * (weights[self.source[rows]] * losses).mean() + self.l2 * decay(v)

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """Test accuracies, and how the weights separate and order the sources."""
        weights = outer["logit"].softmax(0)
        found = {
            TEST: accuracy(self._model, inner, *self._digits.test),
            AUC: self._auc(weights),
            RANKS: rank_correlation(weights, self.noise),
        }
        return {AS_FOUND: found, RETRAINED: self._fitted(weights)}

    def baselines(self) -> Mapping[str, Figures]:
        """Equal weights, clean sources alone, clean images alone, and weights by agreement.

        The last are proportional to the share of labels that a model of the clean images finds.
        """
        x, y = self._digits.parts[1]
        alone = fit_to_the_end(
            initial(self._model),
            lambda v: cross_entropy(self._model, v, x, y) + self.l2 * decay(v),
        )
        found = logits(self._model, alone, self._digits.parts[0].x).argmax(1) == self.labels
        agreement = torch.stack(
            [found[self.source == s].float().mean() for s in range(self.sources)]
        )
        clean = (self.noise == 0).float()
        by_noise = 1 - self.noise
        return {
            "oracle: clean sources alone": self._fitted(clean / clean.sum()),
            "oracle: weights 1 - noise": self._fitted(by_noise / by_noise.sum()),
            "equal weights": self._fitted(torch.full((self.sources,), 1 / self.sources)),
            "clean images alone": {TEST: accuracy(self._model, alone, *self._digits.test)},
            "weights by agreement": {
                **self._fitted(agreement / agreement.sum()),
                AUC: self._auc(agreement),
                RANKS: rank_correlation(agreement, self.noise),
            },
        }

    def _fitted(self, weights: Tensor) -> dict[str, float]:
        v = fit_to_the_end(
            initial(self._model), lambda v: self._inner_loss(v, weights.detach(), slice(None))
        )
        return {TEST: accuracy(self._model, v, *self._digits.test)}

    def _auc(self, weights: Tensor) -> float:
        """Area under the ROC curve of the weights for clean against noisy sources."""
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score((self.noise == 0).numpy(), weights.detach().numpy()))

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Draws the weights of the sources in the order of their noise; the first half is clean."""
        places = [float(place) for place in range(self.sources)]
        share = {name: u["logit"].softmax(0) * self.sources for name, u in solutions.items()}
        lines = {name: (places, weights.tolist()) for name, weights in share.items()}
        title, label = "Learned weights of the sources", "source in the order of its noise (number)"
        curves(title, lines, label, "weight (1: all are equal)", path, xscale="linear")


def rank_correlation(weights: Tensor, noise: Tensor) -> float:
    """Spearman's correlation; -1 where more noise has less weight throughout. Ties share ranks."""
    both = torch.stack([_ranks(weights.detach()), _ranks(noise)])
    return float(torch.corrcoef(both)[0, 1]) if float(both.std(1).min()) > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Mean ranks, ``[M]``."""
    below = (values[:, None] > values).double().sum(1)
    equal = (values[:, None] == values).double().sum(1)
    return below + (equal - 1) / 2
