"""Learned data augmentation: a network that transforms the training images of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fewshot_blo.bilevel import Params
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural, NonNegative, Width
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

TEST, LOSS, CHANGED = "test accuracy %", "validation loss", "change of a pixel"
_NOISES = 4

Change = Callable[[Tensor, Tensor], Tensor]
"""Maps images ``[B, 1, 28, 28]`` and random numbers ``[B, 4, 28, 28]`` to transformed images."""


class Augmenter(nn.Module):
    """A U-net that maps an image and random numbers to a change, which is added to the image.

    Half of the random numbers are constant over an image, so that a change can be global, and half
    differ between pixels. The initial change is small.

    Args:
        channels: channels of the finest level; the coarser two have twice and four times as many.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        one, two, four = channels, 2 * channels, 4 * channels
        self.fine = nn.Conv2d(1 + _NOISES, one, 3, padding=1)
        self.middle = nn.Conv2d(one, two, 3, padding=1)
        self.coarse = nn.Conv2d(two, four, 3, padding=1)
        self.middle_up = nn.Conv2d(four + two, two, 3, padding=1)
        self.fine_up = nn.Conv2d(two + one, one, 3, padding=1)
        self.last = nn.Conv2d(one, 1, 3, padding=1)
        for name, p in self.last.named_parameters():
            nn.init.normal_(p, std=1e-2 if name == "weight" else 0.0)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Transformed images ``[B, 1, 28, 28]``.

        Args:
            x: images, ``[B, 1, 28, 28]``.
            noise: standard normal numbers, ``[B, 4, 28, 28]``.
        """
        half = _NOISES // 2
        whole = _one_an_image(noise[:, :half]).expand_as(noise[:, :half])
        inputs = torch.cat([x, whole, noise[:, half:]], 1)
        fine = F.relu(self.fine(inputs))
        middle = F.relu(self.middle(F.avg_pool2d(fine, 2)))
        coarse = F.relu(self.coarse(F.avg_pool2d(middle, 2)))
        middle = F.relu(self.middle_up(torch.cat([_doubled(coarse), middle], 1)))
        fine = F.relu(self.fine_up(torch.cat([_doubled(middle), fine], 1)))
        changed: Tensor = x + self.last(fine)
        return changed


def _doubled(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2.0)


@checked
@dataclass(frozen=True)
class LearnedAugmentation(Study):
    """``G = CE(v; A_u(x, z), y) + l2/2 |v|²`` on training, ``F = CE(v)`` on validation images.

    The outer variables u are the parameters of the augmenting network A. The random numbers z
    differ in every inner step and are a function of the outer and the inner step. Retraining starts
    from scratch, with a new transformation of the training images in every step.

    Attributes:
        train: number of training images.
        validation: number of validation images.
        network: architecture of the classifier.
        hidden: units of the classifier's hidden layer.
        channels: channels of the augmenting network; 4 give about 4,000 outer variables.
        l2: weight of the l2 regularisation of the classifier.
        batch: training images per inner step; 0 for all.
        validation_batch: validation images per outer step; 0 for all.
        epochs: epochs of retraining and of the baselines, over the training images.

    Source: the data-augmentation network of Vicol et al. (arXiv 2212.14032), table 3; its
    architecture and sizes are our own.
    """

    train: Counting = 200
    validation: Counting = 1000
    network: NetworkName = "perceptron"
    hidden: Width = 128
    channels: Width = 4
    l2: NonNegative = 1e-3
    batch: Natural = 50
    validation_batch: Natural = 0
    epochs: Counting = 100

    @cached_property
    def _digits(self) -> Digits:
        return read_digits(self.root, (self.train, self.validation), self.seed)

    @cached_property
    def _model(self) -> nn.Module:
        return make_network(self.network, self.seed, hidden=self.hidden)

    @cached_property
    def _augmenter(self) -> Augmenter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Augmenter(self.channels)

    def problem(self) -> PlainProblem:
        """The problem, with random initial weights of the augmenting network."""
        (x, y), validation = self._digits.parts
        outer_rows = batches(self.validation, self.validation_batch, 2 * self.seed + 1)

        def inner_loss(v: Params, u: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
            rows, noise = batch
            changed = self.changed(u, x[rows], noise)
            return cross_entropy(self._model, v, changed, y[rows]) + self.l2 * decay(v)

        def outer_loss(v: Params, u: Params, rows: Tensor) -> Tensor:
            return cross_entropy(self._model, v, validation.x[rows], validation.y[rows])

        return PlainProblem(
            initial(self._augmenter),
            initial(self._model),
            inner_loss,
            outer_loss,
            self.inner_batch,
            outer_rows,
        )

    def inner_batch(self, step: int, inner_step: int) -> tuple[Tensor, Tensor]:
        """Rows ``[B]`` and random numbers ``[B, 4, 28, 28]``, a pure function of the steps."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, step, inner_step + 1))
        rows = torch.randperm(self.train, generator=generator)[: self.batch or None]
        return rows, _noise(len(rows), generator)

    def changed(self, u: Params, x: Tensor, noise: Tensor) -> Tensor:
        """Images transformed by the augmenting network, ``[B, 1, 28, 28]``."""
        found: Tensor = functional_call(self._augmenter, dict(u), (x, noise))
        return found

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """Accuracy on the test images, F, and the mean absolute change of a pixel."""

        def change(x: Tensor, noise: Tensor) -> Tensor:
            return self.changed(outer, x, noise)

        train = self._digits.parts[0]
        v = self._fitted(train, change)
        with torch.no_grad():
            shift = change(train.x, _noise(self.train, torch.Generator().manual_seed(0))) - train.x
        found = {**self._figures(inner), CHANGED: float(shift.abs().mean())}
        return {AS_FOUND: found, RETRAINED: self._figures(v)}

    def baselines(self) -> Mapping[str, Figures]:
        """Training without augmentation and with random shifts and rotations.

        Each on the training images alone and together with the validation images.
        """
        train, validation = self._digits.parts
        both = Labelled(*(torch.cat(pair) for pair in zip(train, validation, strict=True)))
        rows: dict[str, Figures] = {}
        for name, change in (("no augmentation", unchanged), ("shifts and rotations", moved)):
            rows[name] = self._figures(self._fitted(train, change))
            found = self._figures(self._fitted(both, change))
            rows[f"train + validation, {name}"] = {TEST: found[TEST]}
        return rows

    def _fitted(self, data: Labelled, change: Change) -> Params:
        """Parameters trained from scratch on transformed images."""
        generator = torch.Generator().manual_seed(self.seed)

        def loss(v: Mapping[str, Tensor], rows: Tensor) -> Tensor:
            with torch.no_grad():
                x = change(data.x[rows], _noise(len(rows), generator))
            return cross_entropy(self._model, v, x, data.y[rows]) + self.l2 * decay(v)

        batch = self.batch or len(data.x)
        return fit_in_batches(
            initial(self._model),
            loss,
            len(data.x),
            updates=updates_of(self.epochs, len(data.x), batch),
            learning_rate=3e-3,
            batch=batch,
            seed=self.seed,
        )

    @torch.no_grad()
    def _figures(self, v: Mapping[str, Tensor]) -> dict[str, float]:
        loss = cross_entropy(self._model, v, *self._digits.parts[1])
        return {TEST: accuracy(self._model, v, *self._digits.test), LOSS: float(loss)}

    @torch.no_grad()
    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Draws one image of each digit, original and transformed by each row."""
        x, y = self._digits.parts[0]
        shown = x[[int((y == digit).nonzero()[0]) for digit in range(10)]]
        noise = _noise(10, torch.Generator().manual_seed(0))
        rows = {"image": shown, "by hand": moved(shown, noise)}
        rows |= {name: self.changed(u, shown, noise) for name, u in solutions.items()}
        titles = [str(digit) for digit in range(10)]
        shown_rows = {name: row[:, 0] for name, row in rows.items()}
        images("One image of each digit, changed by each row", shown_rows, titles, path)


def unchanged(x: Tensor, noise: Tensor) -> Tensor:
    """The images without a transformation."""
    del noise
    return x


def moved(x: Tensor, noise: Tensor) -> Tensor:
    """Images ``[B, 1, 28, 28]`` with random shifts and rotations.

    Their standard deviations are 1.5 pixels along each axis and 0.15 radians.
    """
    right, down, angle = (_one_an_image(noise)[:, :3, 0, 0] * torch.tensor([1.5, 1.5, 0.15])).T
    cos, sin = angle.cos(), angle.sin()
    lines = [torch.stack([cos, -sin, right / 14], 1), torch.stack([sin, cos, down / 14], 1)]
    grid = F.affine_grid(torch.stack(lines, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _noise(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, _NOISES, 28, 28, generator=generator)


def _one_an_image(noise: Tensor) -> Tensor:
    """Standard normal numbers ``[B, C, 1, 1]``, one per image, from ``[B, C, 28, 28]``."""
    return noise.mean((2, 3), keepdim=True) * 28
