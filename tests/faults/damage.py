"""Damaged files of tensors, of which none may load with other content.

A damage is a flipped bit, 4 KiB of zeros, or a cut, each at a random place.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten

from faults.row import Row
from fewshot_blo.errors import CheckpointError
from fewshot_blo.records.tensor_files import read_tensors

DAMAGES = ("bit", "zeros", "cut")


def damaged(content: bytes, kind: str, generator: random.Random) -> bytes:
    """The content with one damage of a kind."""
    place = generator.randrange(len(content))
    changed = bytearray(content)
    if kind == "bit":
        changed[place] ^= 1 << generator.randrange(8)
    elif kind == "zeros":
        end = min(len(content), place + 4096)
        changed[place:end] = bytes(end - place)
    else:
        del changed[place:]
    return bytes(changed)


def is_same(a: Any, b: Any) -> bool:
    """Whether two trees of tensors and plain data are equal bit for bit."""
    (left, form), (right, other) = tree_flatten(a), tree_flatten(b)
    return form == other and all(
        type(x) is type(y)
        and (
            x.dtype == y.dtype and x.shape == y.shape and bool(_bits(x).equal(_bits(y)))
            if isinstance(x, torch.Tensor)
            else repr(x) == repr(y)
        )
        for x, y in zip(left, right, strict=True)
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def outcome(content: bytes, path: Path, original: Any) -> str:
    """What reading damaged content gives: refused, the same content, or a silent change."""
    path.write_bytes(content)
    try:
        found = read_tensors(path, "file")
    except CheckpointError:
        return "refused"
    return "same content" if is_same(found, original) else "silently changed"


def measure(files: Mapping[str, Path], place: Path, tries: int, seed: int = 0) -> Iterator[Row]:
    """A row for every file: how many damaged ones are refused, or hold what was written.

    Args:
        files: the files by name.
        place: a folder to work in.
        tries: number of each kind of damage and file.
        seed: of the places.
    """
    generator = random.Random(seed)
    for name, file in files.items():
        row = Row("damage", name)
        content, original = file.read_bytes(), read_tensors(file, "file")
        for kind in DAMAGES:
            for _ in range(tries):
                found = outcome(damaged(content, kind, generator), place / "f.pt", original)
                row.add(f"{kind}: {found}" if found == "silently changed" else None)
        yield row
