"""The map of the images: two principal components of their features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

COLOURS, SHAPES = 7, 5
"""Colours and shapes that the style sheet has. Both differ from class to class, for readers who see
colours alike, and together they tell 35 classes apart."""
MOST = 2000
_EDGE = 3.0


@dataclass(frozen=True)
class FeatureMap:
    """Places of images.

    Attributes:
        rows: rows of the images that are drawn, in their order.
        places: their distances from left and top in per cent, ``[P, 2]``.
        shown: share of the variance that the two components have, in [0, 1].
    """

    rows: list[int]
    places: Tensor
    shown: float

    def style(self) -> str:
        """Style rules that place the dots, of which each has its row in its id."""
        pairs = zip(self.rows, self.places.tolist(), strict=True)
        return "\n".join(f"#d{row}{{left:{x:.2f}%;top:{y:.2f}%}}" for row, (x, y) in pairs)


def feature_map(features: Tensor, wrong: Tensor) -> FeatureMap:
    """Places images at the first two principal components of their features of unit length.

    Args:
        features: features, ``[M, D]``.
        wrong: which images are drawn first if there are more than 2000, ``[M]``.
    """
    centred = F.normalize(features.double())
    centred = centred - centred.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    rank = min(2, len(s))
    places = F.pad(u[:, :rank] * s[:rank], (0, 2 - rank))
    low, high = places.amin(0), places.amax(0)
    places = (places - low) / (high - low).clamp(min=1e-12)
    rows = importance(wrong)[:MOST].sort().values
    variance = s.square()
    shown = float(variance[:2].sum() / variance.sum().clamp(min=1e-300))
    return FeatureMap(rows.tolist(), _EDGE + (100 - 2 * _EDGE) * places[rows], shown)


def importance(wrong: Tensor) -> Tensor:
    """All rows, wrong images first and otherwise in random order."""
    order = torch.randperm(len(wrong), generator=torch.Generator().manual_seed(0))
    return order[(~wrong[order]).int().argsort(stable=True)]


def mark(label: int) -> str:
    """Classes of style that give a label its colour and shape."""
    return f"c{label % COLOURS} s{label % SHAPES}"
