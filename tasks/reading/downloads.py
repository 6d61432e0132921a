"""Downloads into a folder of data that several processes may start at the same time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fewshot_blo.tasks.reading.turns import turn

LOCK = ".download.lock"


def downloaded_once(root: Path, title: str, download: Callable[[bool], None]) -> None:
    """Downloads what is missing; of several processes one does, and the others wait for it.

    Args:
        root: folder of the data.
        title: name of the data set.
        download: downloads what is missing from the folder; with True also what is there, since an
            earlier download was interrupted and may have left part of a file.
    """
    with turn(root / LOCK, f"downloads {title} to {root}", told=True) as is_left:
        download(is_left)
