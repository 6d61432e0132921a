"""Loading checkpoints with the digests of their records, against ``torch.load`` alone.

    python benchmarks/loading.py [--rounds 21]

Both read the same file from the system's cache of files, in turns. The median of the rounds' ratios
is printed for the time of the whole call, of which checking is a part.
"""

from __future__ import annotations

import argparse
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from timing import Spread, seconds, take_turns
from torch import Tensor

from fewshot_blo import keep_freed_memory
from fewshot_blo.records.tensor_files import read_tensors, write_tensors

CPU = torch.device("cpu")


def main() -> None:
    """Prints a line for each kind of checkpoint, and what a digest costs by itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for each file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in _contents().items():
            path = Path(folder) / "f.pt"
            write_tensors(content, path, "checkpoint")
            print(f"{name:24} {path.stat().st_size / 2**20:6.1f} MiB  {_line(path, arguments)}")
    memory = bytes(64 << 20)
    print(f"CRC-32 of memory: {0.0625 / seconds(lambda: zlib.crc32(memory), CPU):.2f} GiB/s")


def _line(path: Path, arguments: argparse.Namespace) -> str:
    ways: Mapping[str, Callable[[], object]] = {
        "checked": lambda: read_tensors(path, "checkpoint"),
        "torch.load": lambda: torch.load(path, weights_only=True),
    }
    for way in ways.values():
        way()
    rounds = list(
        take_turns(
            list(ways),
            lambda name: seconds(ways[name], CPU),
            repeats=arguments.rounds,
            budget=arguments.budget,
        )
    )
    ratio = Spread.of([found["checked"] / found["torch.load"] for found in rounds])
    plain = Spread.of([found["torch.load"] for found in rounds])
    return (
        f"torch.load {1e3 * plain.median:7.2f} ms, checked {ratio.median:.2f} x of it "
        f"[{ratio.low:.2f} to {ratio.high:.2f}]"
    )


def _contents() -> dict[str, dict[str, Tensor]]:
    """Tensors like those of a small checkpoint, of many equal records, and of a ResNet-50."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        shapes += [(width, 4 * width), (width, width, 3, 3), (4 * width, width)] * blocks
        shapes += [(width,)] * 8 * blocks + [(4 * width,)] * 4 * blocks
    shapes.append((1000, 2048))
    return {
        "four layers": {f"{n}": torch.randn(32, 32, 32) for n in range(4)},
        "100 tensors of 1 MiB": {f"{n}": torch.randn(1 << 18) for n in range(100)},
        "like ResNet-50": {f"{n}": torch.randn(shape) for n, shape in enumerate(shapes)},
    }


if __name__ == "__main__":
    main()
