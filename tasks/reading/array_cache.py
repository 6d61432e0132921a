"""Arrays that take seconds to compute, kept in the cache folder from one run to the next."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.records.files import ARCHIVE_ERRORS, atomic_write, cache_folder


def read_arrays(name: str, key: str) -> dict[str, NDArray[Any]] | None:
    """The arrays kept under this name with this key; None if absent, stale or damaged."""
    try:
        with (
            (cache_folder() / f"{name}.npz").open("rb") as file,
            np.load(file, allow_pickle=False) as content,
        ):
            if content["key"] != key:
                return None
            return {array: content[array] for array in content.files if array != "key"}
    except (*ARCHIVE_ERRORS, TypeError, AttributeError):  # the last two: an array, no archive
        return None


def write_arrays(name: str, key: str, **arrays: NDArray[Any]) -> None:
    """Keeps arrays in place of what had this name; warns where they cannot be kept."""
    path = cache_folder() / f"{name}.npz"
    try:
        with atomic_write(path) as file:
            content: dict[str, Any] = {"key": np.array(key), **arrays}
            np.savez_compressed(file, **content)
    except OSError as error:
        warnings.warn(
            f"{path} cannot be written and will be computed again next time ({error}): make room "
            "there, or name another cache folder in the environment variable XDG_CACHE_HOME",
            stacklevel=3,
        )
