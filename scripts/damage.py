"""Counts how many damaged files load with other content: ``python scripts/damage.py FILE ...``.

A damage is a flipped bit, 4 KiB of zeros, or a cut, each at a random place.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tries", type=int, default=200, help="of each kind of damage and file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator, total = random.Random(arguments.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for file in arguments.files:
            content, original = file.read_bytes(), read_tensors(file, "file")
            for kind in DAMAGES:
                counts = Counter(
                    outcome(damaged(content, kind, generator), Path(folder) / "f.pt", original)
                    for _ in range(arguments.tries)
                )
                total += counts
                print(f"{file}: {kind}: {dict(counts)}")
    print(f"in all {sum(total.values())}: {dict(total)}")


if __name__ == "__main__":
    main()
