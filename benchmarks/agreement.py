"""How far two gradients are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
"""A gradient by outer variable, in a form that goes from process to process."""


def relative_difference(gradient: Mapping[str, NDArray[Any]], reference: Arrays) -> float:
    """``|gradient - reference| / |reference|``, over all variables of the reference together."""
    difference = {
        name: gradient[name].astype(np.float64) - value for name, value in reference.items()
    }
    return _norm(difference) / _norm(reference)


def _norm(arrays: Arrays) -> float:
    return float(np.sqrt(sum(float(np.square(value).sum()) for value in arrays.values())))
