"""The file that a run of the driver goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import CheckpointError
from fewshot_blo.records.tensor_files import LAST, read_tensors, write_tensors

FILE = LAST
_FORMAT = "solve 1"


def start_folder(folder: Path) -> None:
    """Makes the folder of a new run.

    Raises:
        CheckpointError: if it holds a run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / FILE).exists():
        raise CheckpointError(f"{folder} already holds a run: resume it, or choose another folder")


@contextmanager
def read_run(folder: Path, outer: Params) -> Iterator[Mapping[str, Any]]:
    """What ``write_run`` wrote, to be taken up inside, on the host.

    Raises:
        CheckpointError: if there is none, it is of other variables, or lacks what is asked for.
    """
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    saved = read_tensors(path, "checkpoint")
    kinds = {name: list(p.shape) for name, p in outer.items()}
    try:
        found = {name: list(p.shape) for name, p in saved["outer"].items()}
        if saved["format"] != _FORMAT or found != kinds:
            raise CheckpointError(
                f"{path} is of a problem with the outer variables {found}, and this one has "
                f"{kinds}: choose another folder"
            )
        yield saved
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{path} lacks a part of a run of solve ({error}): choose another folder"
        ) from error


def write_run(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes all that a run needs to go on."""
    write_tensors({"format": _FORMAT, **content}, folder / FILE, "checkpoint")
