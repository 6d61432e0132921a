"""Files of tensors and plain data: written atomically, read without executing code."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewshot_blo.errors import CheckpointError
from fewshot_blo.machine.memory import is_out_of_memory
from fewshot_blo.records.checked_zip import DamagedError, checked, is_intact
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.shipped import checkpoint_file, instead_of

LAST, BEST = "last.pt", "best.pt"
"""Names of the checkpoints of a run."""


def write_tensors(content: Mapping[str, Any], path: Path, what: str) -> None:
    """Writes a file atomically: an earlier file at ``path`` stays if writing fails.

    Args:
        content: tensors and plain data.
        path: path of the file.
        what: kind of file, for the error.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    # Into memory first: PyTorch's writer hides the reason of a failed write.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise CheckpointError(
            f"cannot write the {what} {path}: {error}; free disk space or choose another folder. "
            f"An earlier {what} at this path is unchanged."
        ) from error


def read_tensors(path: Path, what: str, device: torch.device | str = "cpu") -> Any:
    """Reads a file of tensors and plain data, without executing code in it.

    Each record of PyTorch's zip files is checked with its CRC-32, so that a damaged file is never
    used. Files of safetensors and those of PyTorch before 1.6 hold no digests: of them, only what
    breaks their structure is noticed.

    Args:
        path: path of the file: safetensors if it has that suffix, else PyTorch's format. Where
            there is no such file, the name of a released model stands for its checkpoint.
        what: expected kind of file, for the error.
        device: device of the tensors.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds anything else. The message names
            the damaged record, and intact files beside it.
    """
    path = checkpoint_file(path)
    if not path.is_file():
        raise CheckpointError(f"there is no {what} {path}: check the path{instead_of(path)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path, device=str(device))
        with checked(path) as file:
            return torch.load(file, map_location=device, weights_only=True)
    except ImportError as error:
        raise CheckpointError(f"{path} needs the package safetensors: install it") from error
    except (DamagedError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} cannot be read as a {what}: it is damaged or truncated ({error}); "
            f"use another copy, or write it again{_intact_beside(path)}"
        ) from error
    except Exception as error:  # A damaged pickle can raise almost any exception.
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{path} cannot be read as a {what} ({_reason(error)}): it is truncated, damaged, or "
            "holds more than tensors and plain data; use another file, or write it again"
            f"{_intact_beside(path)}"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error, without PyTorch's advice to allow files to run code."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        return f"it names {found[1]}" if found else "its pickle cannot be read"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _intact_beside(path: Path) -> str:
    """A sentence on the intact checkpoint in the folder of one that cannot be read."""
    names = {LAST: BEST, BEST: LAST}
    other = path.with_name(names.get(path.name, path.name))
    if other == path or not is_intact(other):
        return ""
    use = f"; to go on from its step, copy it to {LAST}" if other.name == BEST else ""
    return f". {other.name} beside it is intact{use}"
