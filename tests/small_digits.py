"""A small MNIST of patterns under noise, in files of the original's format."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COUNTS = {"train": 600, "t10k": 200}


def idx(array: NDArray[np.uint8]) -> bytes:
    """An array of bytes in the format idx."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def write_digits(root: Path) -> None:
    """Writes the four files, packed."""
    rng = np.random.default_rng(0)
    patterns = np.kron(rng.integers(0, 2, (10, 7, 7)), np.ones((4, 4))) * 180
    for part, count in COUNTS.items():
        labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
        noisy = patterns[labels] + rng.normal(0, 60, (count, 28, 28))
        images = noisy.clip(0, 255).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (root / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
