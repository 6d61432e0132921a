"""Files of tensors and plain data: written atomically, read without executing code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewshot_blo.errors import CheckpointError
from fewshot_blo.records.files import atomic_write


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

    Args:
        path: path of the file: safetensors if it has that suffix, else PyTorch's format.
        what: expected kind of file, for the error.
        device: device of the tensors.

    Raises:
        CheckpointError: if the file is missing, or holds anything else.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no {what} {path}: check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path, device=str(device))
        return torch.load(path, map_location=device, weights_only=True)
    except ImportError as error:
        raise CheckpointError(f"{path} needs the package safetensors: install it") from error
    except Exception as error:  # A damaged pickle can raise almost any exception.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a {what} ({reason}): it is truncated, damaged, or holds "
            "more than tensors and plain data; use another file, or write it again"
        ) from error
