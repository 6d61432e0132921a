"""Files of tensors and plain data: written whole or not at all, read without running code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewshot_blo.errors import CheckpointError
from fewshot_blo.records.files import atomic_write


def write_tensors(content: Mapping[str, Any], path: Path, what: str) -> None:
    """Writes a file; what was at ``path`` before stays unless the new one is complete.

    Args:
        content: tensors, and plain data.
        path: of the file.
        what: it is, for the error.

    Raises:
        CheckpointError: if it cannot be written.
    """
    # In memory first: PyTorch's writer hides the reason of a failed write to a file.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise CheckpointError(
            f"cannot write the {what} {path}: {error}; free space or choose another folder. "
            f"An earlier {what} of that name is intact."
        ) from error


def read_tensors(path: Path, what: str, device: torch.device | str = "cpu") -> Any:
    """What a file holds; nothing but tensors and plain data is made from it.

    Args:
        path: of the file; safetensors by its suffix, else PyTorch's.
        what: it should be, for the error.
        device: of the tensors.

    Raises:
        CheckpointError: if it is missing, or holds anything else.
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
            "more than tensors and plain data; use another one, or have it written anew"
        ) from error
