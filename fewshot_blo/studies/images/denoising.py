"""Data denoising: learns one weight per training image, when some of the labels are wrong."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import installed_by
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Above, Below, Counting, Natural, NonNegative, Width
from fewshot_blo.solving.driver import Observe
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.images.classifiers import (
    NetworkName,
    accuracy,
    cross_entropy,
    decay,
    fit_in_batches,
    fit_to_the_end,
    initial,
    logits,
    make_network,
)
from fewshot_blo.studies.images.digits import Digits, Labelled, batches, read_digits
from fewshot_blo.studies.pictures import histograms
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study

TEST, AUC, F1 = "test accuracy %", "AUC", "F1 of kept %"
KEPT, WRONG = "kept %", "wrong among kept %"
_L2_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


@checked
@dataclass(frozen=True)
class Denoising(Study):
    """``G = Σ_i σ(u_i) CE_i(v) / Σ_i σ(u_i) + l2/2 |v|²``, ``F`` the mean CE of clean images.

    Retraining starts from scratch on the images with ``σ(u_i) > 1/2`` and the clean ones. The
    published figures are those of v as found, which was trained on F as well. The F1 score is that
    of the kept images, ``σ(u_i) > 1/2``, as a prediction of the right labels.

    Attributes:
        train: number of training images, some of whose labels are wrong.
        validation: number of clean images.
        noise: share of the training images with a random wrong label, between 0 and 1.
        network: architecture of the classifier.
        hidden: units of the classifier's hidden layer.
        normalised: divide by the sum of the weights; otherwise by the number of images.
        l2: weight of the l2 regularisation of the classifier.
        batch: images per mini-batch at both levels; 0 for all.
        pretraining: mini-batches of all images, including clean ones, on which v is trained before
            the first outer step, for runs in which each image is in few outer steps.
        updates: mini-batches of 200 images for retraining and the baselines, if the network is not
            linear. The number does not depend on how many images are kept.

    Source: Mehra & Hamm (arXiv 1911.03432), data denoising; unlike in its code, the mean of the
    weights is not reset after each epoch. With ``normalised`` false, ``l2`` of 0 and "linear" or
    300 "sigmoid" units: data hyper-cleaning of Shen & Chen (arXiv 2302.05185) and its F1 score. In
    its code one in ten of the polluted labels is drawn right, which counts as wrong in the score,
    and the test images are a part of MNIST's training images; here neither is so.
    """

    train: Counting = 5000
    validation: Counting = 5000
    noise: Annotated[float, Above(0), Below(1)] = 0.5
    network: NetworkName = "linear"
    hidden: Width = 128
    normalised: bool = True
    l2: NonNegative = 1e-3
    batch: Natural = 0
    pretraining: Natural = 0
    updates: Counting = 600

    def __post_init__(self) -> None:
        with installed_by(".[sklearn]"):  # Needed by measure: fail before the first step.
            importlib.import_module("sklearn.metrics")

    @cached_property
    def _digits(self) -> Digits:
        return read_digits(self.root, (self.train, self.validation), self.seed)

    @cached_property
    def _model(self) -> nn.Module:
        return make_network(self.network, self.seed, hidden=self.hidden)

    @cached_property
    def wrong(self) -> Tensor:
        """Whether each training image has a wrong label, ``[train]``."""
        return torch.arange(self.train) < self.noise * self.train

    @cached_property
    def labels(self) -> Tensor:
        """Labels of the training images, some of them wrong, ``[train]``."""
        right = self._digits.parts[0].y
        shift = torch.randint(1, 10, right.shape, generator=torch.Generator().manual_seed(1))
        return torch.where(self.wrong, (right + shift) % 10, right)

    def problem(self) -> PlainProblem:
        """The problem; all weights start at one half."""
        x, (clean_x, clean_y) = self._digits.parts[0].x, self._digits.parts[1]

        def inner_loss(v: Params, u: Params, rows: Tensor) -> Tensor:
            weights = u["logit"][rows].sigmoid()
            losses = F.cross_entropy(
                logits(self._model, v, x[rows]), self.labels[rows], reduction="none"
            )
            total = weights.sum() if self.normalised else len(rows)
            return (weights * losses).sum() / total + self.l2 * decay(v)

        def outer_loss(v: Params, u: Params, rows: Tensor) -> Tensor:
            return cross_entropy(self._model, v, clean_x[rows], clean_y[rows])

        inner_rows = batches(self.train, self.batch, 2 * self.seed)
        return PlainProblem(
            {"logit": torch.zeros(self.train)},
            self._start,
            inner_loss,
            outer_loss,
            # All inner steps of an outer step share a mini-batch, as in the paper's code.
            lambda step, _: inner_rows(step),
            batches(self.validation, self.batch, 2 * self.seed + 1),
        )

    @cached_property
    def _start(self) -> Params:
        """Initial inner parameters, the same for all rows."""
        if not self.pretraining:
            return initial(self._model)
        return self._by_mini_batches(*self._images(slice(None)), self.l2, self.pretraining)

    def observe(self) -> Observe:
        """How badly the weights tell wrong labels from right ones."""
        return lambda outer, inner: {"1 - AUC of the weights": 1 - self._auc(outer["logit"])}

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """Test accuracy, AUC of the weights, and shares of kept images and of wrong labels."""
        weights = outer["logit"]
        test = self._digits.test
        found = {
            TEST: accuracy(self._model, inner, *test),
            AUC: self._auc(weights),
            F1: self._f1(weights > 0),
        }
        return {AS_FOUND: found, RETRAINED: self._trained_on(weights > 0)}

    def baselines(self) -> Mapping[str, Figures]:
        """Training with true labels, without cleaning, and with simple methods of cleaning."""
        nothing, everything = torch.zeros(self.train).bool(), torch.ones(self.train).bool()
        alone = self._fitted(nothing, self.l2)
        x = self._digits.parts[0].x
        agreement = logits(self._model, alone, x).softmax(1)
        likelihood = agreement[torch.arange(self.train), self.labels]
        return {
            "oracle: clean labels alone": self._trained_on(~self.wrong),
            "clean images alone": self._trained_on(nothing),
            "all labels": self._trained_on(everything),
            "all labels, l2 chosen on a fifth of the clean": self._with_l2_chosen(),
            "labels that a model of the clean images finds": {
                **self._trained_on(agreement.argmax(1) == self.labels),
                AUC: self._auc(likelihood),
            },
        }

    def _trained_on(self, kept: Tensor) -> dict[str, float]:
        v = self._fitted(kept, self.l2)
        figures = {TEST: accuracy(self._model, v, *self._digits.test)}
        figures[KEPT] = 100 * float(kept.double().mean())
        if kept.any():
            figures[WRONG] = 100 * float(self.wrong[kept].double().mean())
        return figures

    def _fitted(self, kept: Tensor, l2: float, held_out: int = 0) -> Params:
        """Parameters trained from scratch on the kept training images and the clean ones."""
        x, y = self._images(kept, held_out)
        if self.network != "linear":
            return self._by_mini_batches(x, y, l2, self.updates)
        return fit_to_the_end(
            initial(self._model), lambda v: cross_entropy(self._model, v, x, y) + l2 * decay(v)
        )

    def _by_mini_batches(self, x: Tensor, y: Tensor, l2: float, updates: int) -> Params:
        return fit_in_batches(
            initial(self._model),
            lambda v, rows: cross_entropy(self._model, v, x[rows], y[rows]) + l2 * decay(v),
            len(x),
            updates=updates,
            seed=self.seed,
        )

    def _images(self, kept: Tensor | slice, held_out: int = 0) -> Labelled:
        """The kept training images and the clean ones, without the last ``held_out`` of these."""
        (x, _), (clean_x, clean_y) = self._digits.parts
        clean = slice(0, self.validation - held_out)
        return Labelled(
            torch.cat([x[kept], clean_x[clean]]), torch.cat([self.labels[kept], clean_y[clean]])
        )

    def _with_l2_chosen(self) -> dict[str, float]:
        everything = torch.ones(self.train).bool()
        fifth = self.validation // 5
        x, y = (part[-fifth:] for part in self._digits.parts[1])

        def right(l2: float) -> float:
            return accuracy(self._model, self._fitted(everything, l2, fifth), x, y)

        best = max(_L2_GRID, key=right)
        v = self._fitted(everything, best)
        return {TEST: accuracy(self._model, v, *self._digits.test), KEPT: 100.0, "l2": best}

    def _auc(self, scores: Tensor) -> float:
        """Area under the ROC curve of scores ``[train]`` for correct against wrong labels."""
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score((~self.wrong).numpy(), scores.detach().numpy()))

    def _f1(self, kept: Tensor) -> float:
        """F1 score of the kept images as a prediction of the right labels, in %."""
        from sklearn.metrics import f1_score

        # The library's annotation lacks numbers, which it takes: 0 where nothing is kept.
        zero: Any = 0.0
        return 100 * float(f1_score((~self.wrong).numpy(), kept.numpy(), zero_division=zero))

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Draws histograms of the weights of correct and wrong labels."""
        weights = {name: u["logit"].sigmoid() for name, u in solutions.items()}
        groups = {"right label": ~self.wrong, "wrong label": self.wrong}
        title = "Learned weights of training images with right and wrong labels"
        histograms(title, weights, groups, "weight of an image", path)
