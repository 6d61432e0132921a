"""Arrays that take seconds to compute, kept in the cache folder between runs."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.records.files import ARCHIVE_ERRORS, atomic_write, cache_folder


def read_arrays(name: str, key: str) -> dict[str, NDArray[Any]] | None:
    """The arrays cached under this name with this key; None if absent, stale or damaged."""
    try:
        with (
            (cache_folder() / f"{name}.npz").open("rb") as file,
            np.load(file, allow_pickle=False) as content,
        ):
            if content["key"] != key:
                return None
            return {array: content[array] for array in content.files if array != "key"}
    except (*ARCHIVE_ERRORS, TypeError, AttributeError):  # The last two: not an archive.
        return None


def write_arrays(name: str, key: str, **arrays: NDArray[Any]) -> None:
    """Caches arrays, replacing those of this name; warns if they cannot be written."""
    path = cache_folder() / f"{name}.npz"
    try:
        with atomic_write(path) as file:
            content: dict[str, Any] = {"key": np.array(key), **arrays}
            np.savez_compressed(file, **content)
    except OSError as error:
        warnings.warn(
            f"{path} cannot be written and will be computed again next time ({error}): free disk "
            "space, or set the environment variable XDG_CACHE_HOME to another cache folder",
            stacklevel=3,
        )
