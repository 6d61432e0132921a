"""Finds images that are nearly the same: copies with noise, cropped a little, frames of a video."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE, _SHIFT, _BLUR = 32, 3, 9
_COARSE_SIDE, _COARSE_SHIFT, _COARSE_BLUR, _COARSE = 16, 1, 5, 0.5
_ZOOM = 0.9
_LOWEST, _HIGHEST = 0.7, 0.98
_SPREADS, _SURE = 12, 2 / 3
_SAMPLE, _ROWS, _PAIRS = 2000, 512, 4096


def near_duplicates(images: Tensor, labels: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """Groups images of one class that are nearly the same.

    Two images are nearly the same if their details correlate: grey, 32 x 32 pixels, without their
    local means over 9 x 9 pixels, at the best of all shifts by up to 3 pixels, one of them mirrored
    or enlarged by a ninth or not. On photographs the limit is 0.7. It is higher, up to 0.98, where
    images of different classes are alike, such as digits: twelve of their spreads above their
    median, in Fisher's transformation (the spread of a normal distribution with their median and
    third quartile). Pairs of two classes are many and need two thirds of what is left to 1 more.

    Args:
        images: uint8 images ``[M, C, S, S]``.
        labels: labels in ``0..N-1``, ``[M]``.

    Returns:
        Group of each image, ``[M]``: the row of its first image; and the pairs of rows of
        different classes that are nearly the same, the first row below the second.
    """
    correlations = _Correlations(images)
    limit = _limit(correlations, labels)
    groups = torch.arange(len(images))
    across: list[tuple[int, int]] = []
    for pairs in _candidates(images):
        found = correlations(pairs)
        same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
        surely = pairs[~same & (found >= limit + (1 - limit) * _SURE)]
        across += [(first, second) for first, second in surely.tolist()]
        for first, second in pairs[same & (found >= limit)].tolist():
            if groups[first] != groups[second]:
                low, high = sorted((int(groups[first]), int(groups[second])))
                groups[groups == high] = low
    return groups, across


def _details(images: Tensor, side: int, blur: int) -> Tensor:
    """Grey images ``[M, 1, side, side]`` without their local means."""
    parts = []
    for part in images.split(_ROWS):
        grey = F.interpolate(part.float().mean(1, keepdim=True), (side, side), mode="area")
        padded = F.pad(grey, (blur // 2,) * 4, mode="replicate")
        parts.append(grey - F.avg_pool2d(padded, blur, 1))
    return torch.cat(parts)


def _windows(details: Tensor, shift: int) -> Iterator[Tensor]:
    """Standardised windows ``[M, D]`` at each shift."""
    side = details.shape[-1] - 2 * shift
    for row, column in product(range(2 * shift + 1), repeat=2):
        yield _unit(details[..., row : row + side, column : column + side])


def _unit(x: Tensor) -> Tensor:
    x = x.flatten(1)
    return F.normalize(x - x.mean(1, keepdim=True), eps=1e-3)


def _candidates(images: Tensor) -> Iterator[Tensor]:
    """Pairs of rows ``[P, 2]`` that are alike at half of the resolution, first below second."""
    details = _details(images, _COARSE_SIDE, _COARSE_BLUR)
    shifted = list(_windows(details, _COARSE_SHIFT))
    middle = shifted[len(shifted) // 2]
    shifted += list(_windows(details.flip(3), _COARSE_SHIFT))
    for start in range(0, len(images), _ROWS):
        centre = middle[start : start + _ROWS]
        best = centre @ shifted[0][start:].T
        for windows in shifted[1:]:
            torch.maximum(best, centre @ windows[start:].T, out=best)
        pairs = (best.triu(1) >= _COARSE).nonzero() + start
        if len(pairs):  # Of no pair there is no Fourier transform.
            yield from pairs.split(_PAIRS)


class _Correlations:
    """Correlations of pairs of images, each at its best shift.

    The centre of one image slides over the other one. A product of Fourier transforms gives all
    shifts at once: centre and shifts just fit into an image, so that nothing wraps around.

    Args:
        images: uint8 images ``[M, C, S, S]``.
    """

    def __init__(self, images: Tensor) -> None:
        details = _details(images, _SIDE, _BLUR)
        edge = round(images.shape[-1] * (1 - _ZOOM) / 2)
        kept = slice(edge, images.shape[-1] - edge)
        enlarged = _details(images[..., kept, kept], _SIDE, _BLUR)
        window = _SIDE - 2 * _SHIFT
        centre = _unit(details[..., _SHIFT:-_SHIFT, _SHIFT:-_SHIFT]).unflatten(1, (window, -1))
        self.centre = torch.fft.rfft2(F.pad(centre, (0, 2 * _SHIFT) * 2)).conj()
        self.others = []
        for image in (details, details.flip(3), enlarged, enlarged.flip(3)):
            mean = F.avg_pool2d(image, window, 1)
            squares = F.avg_pool2d(image**2, window, 1) - mean**2
            # At least 1 and not 0, so that blank images correlate with none.
            norm = (squares * window**2).clamp(min=1).sqrt().squeeze(1)
            self.others.append((torch.fft.rfft2(image.squeeze(1)), norm))

    def __call__(self, pairs: Tensor) -> Tensor:
        """Of pairs of rows ``[P, 2]``, one as it is, mirrored, enlarged or both, ``[P]``."""
        # Either of the two may be the enlarged one.
        return torch.maximum(self._one_way(*pairs.T), self._one_way(*pairs.flip(1).T))

    def _one_way(self, first: Tensor, second: Tensor) -> Tensor:
        shifts = 2 * _SHIFT + 1
        found = [
            torch.fft.irfft2(self.centre[first] * spectrum[second])[:, :shifts, :shifts]
            / norm[second]
            for spectrum, norm in self.others
        ]
        return torch.stack(found).amax((0, 2, 3))


def _limit(correlations: _Correlations, labels: Tensor) -> float:
    """Smallest correlation of images that are nearly the same."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(len(labels), (_SAMPLE, 2), generator=generator)
    pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
    if not len(pairs):
        return _LOWEST
    usual = correlations(pairs).clamp(-_HIGHEST, _HIGHEST).atanh()
    # Not a higher quantile: some pairs of a few images may be copies in two classes.
    middle, upper = usual.quantile(torch.tensor([0.5, 0.75]))
    limit = (middle + _SPREADS * (upper - middle) / 0.6745).tanh()
    return float(limit.clamp(_LOWEST, _HIGHEST))
