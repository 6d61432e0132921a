"""The candidates: ways to fine-tune, among which cross-validation selects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from fewshot_blo.backbones import Adapts, Backbone, Views
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads import BalancedHead, CosineHead, Head, LinearHead, RidgeHead
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.networks.views import COUNT
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.problems.fine_tuning import fine_tuning
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural, Positive

_FEW = 500
"""Largest number of images with which slow candidates are tried too."""
_PART = 20
"""Number of images a class from which on parts of the network are tried too: with fewer they are no
better than heads, and take most of the time."""


@checked
@dataclass(frozen=True)
class Candidate:
    """One way to fine-tune.

    Attributes:
        name: name in the report.
        head: a linear head; or in closed form a class-balanced average of heads, cosine
            prototypes, or ridge regression.
        adapts: parameters that adapt together with the head.
        blocks: number of last blocks that adapt; 0 for all.
        rank: rank of low-rank updates.
        inner: inner steps.
        lam: regularisation of ridge regression.
        power: exponent applied to the features.
        views: views of an image, over which features are averaged.
    """

    name: str
    head: Literal["balanced", "cosine", "linear", "ridge"] = "linear"
    adapts: Adapts = "head"
    blocks: Natural = 0
    rank: Counting = 4
    inner: InnerSteps = InnerSteps(0, SGD())
    lam: Positive = 0.1
    power: Positive = 1.0
    views: Views = "one"

    @property
    def frozen(self) -> tuple[object, ...]:
        """Key of the frozen features: candidates with the same key share them."""
        return self.views, self.adapts, self.blocks, self.rank, self.power

    @property
    def temperature(self) -> float:
        """Temperature of the logits if no image can be held out.

        The logits of a balanced head have a known size on their support set. The temperature was
        the best one, or near it, for two networks on CIFAR-FS and Tiny-ImageNet, one image a class.
        """
        return 1 / 2.8 if self.head == "balanced" else 1.0

    @property
    def head_steps(self) -> InnerSteps:
        """Inner steps for the head alone, whose step size differs from that of the network."""
        return self.inner if self.adapts == "head" else replace(self.inner, rule=SGD(2.0))

    def seeing(self, backbone: Backbone) -> Backbone:
        """The backbone with the views and the power of this candidate."""
        return backbone.with_views(self.views).with_power(self.power)

    def problem(self, backbone: Backbone, image: torch.Size) -> SharedEncoder:
        """The inner problem for images of shape ``[C, H, W]``."""
        heads: dict[str, Head] = {
            "balanced": BalancedHead(),
            "cosine": CosineHead(),
            "linear": LinearHead(),
            "ridge": RidgeHead(lam=self.lam),
        }
        problem = fine_tuning(
            self.seeing(backbone),
            image,
            adapts=self.adapts,
            blocks=self.blocks,
            rank=self.rank,
            head=heads[self.head],
            prox=0.0,
        )
        problem.backend = "batched"
        return problem


BALANCED = Candidate("balanced head", head="balanced")
HEADS = (BALANCED,)
VIEWS: tuple[Views, ...] = ("mirrored", "crops")
TAILS = (
    Candidate("last block", adapts="last_blocks", inner=InnerSteps(30, Adam(1e-3))),
    Candidate(
        "low-rank updates of the last 2 blocks",
        adapts="low_rank",
        blocks=2,
        inner=InnerSteps(30, Adam(3e-3)),
    ),
)


def candidates(
    adapts: Adapts | Literal["auto"],
    views: Views | Literal["auto"],
    *,
    images: int,
    classes: int,
) -> tuple[Candidate, ...]:
    """The candidates to select from, the cheapest first.

    Args:
        adapts: parameters that adapt; "auto" tries heads and, with at least 20 images a class and
            at most 500 in all, also parts of the network.
        views: views of each image; "auto" tries one view and, with at most 500 images, also heads
            on two mirror images and on ten crops.
        images: number of images.
        classes: number of classes.

    Raises:
        ConfigurationError: if ``adapts`` is unknown.
    """
    few = images <= _FEW
    of_kind = _of_kind(adapts, tails=few and images >= _PART * classes)
    if views != "auto":
        return tuple(_seeing(candidate, views) for candidate in of_kind)
    heads = [candidate for candidate in of_kind if candidate.adapts == "head"]
    parts = [candidate for candidate in of_kind if candidate.adapts != "head"]
    more = [_seeing(candidate, seen) for seen in VIEWS for candidate in heads if few]
    return (*heads, *more, *parts)


def _seeing(candidate: Candidate, views: Views) -> Candidate:
    if views == "one":
        return candidate
    return replace(candidate, name=f"{candidate.name}, {COUNT[views]} views", views=views)


def _of_kind(adapts: Adapts | Literal["auto"], *, tails: bool) -> tuple[Candidate, ...]:
    if adapts == "auto":
        return HEADS + TAILS if tails else HEADS
    if adapts == "head":
        return HEADS
    of_kind = tuple(candidate for candidate in TAILS if candidate.adapts == adapts)
    if of_kind:
        return of_kind
    if adapts not in ("bias", "norms", "all"):
        raise ConfigurationError(
            f"adapts is '{adapts}': it must be auto, head, last_blocks, low_rank, bias, norms or "
            "all"
        )
    return tuple(
        Candidate(f"{adapts}, step size {size}", adapts=adapts, inner=InnerSteps(30, Adam(size)))
        for size in (1e-4, 1e-3)
    )
