"""A process of a group: joins the others and does what it is told with them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fewshot_blo.machine.processes import Processes, joined
from ranks import runs, same

DUTIES: dict[str, Callable[[Processes, Path], Any]] = {
    "every case": lambda processes, _: same.errors([3], same.every_case(), processes),
    "a sample": lambda processes, _: same.errors([3], same.sample(), processes),
    "exchange": lambda processes, _: runs.exchange(processes),
    "train": runs.train_together,
    "fail": lambda processes, _: runs.fail(processes),
}


def main() -> None:
    """Writes what its duties return, by name, to ``RANK.json`` in the folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where the processes meet")
    parser.add_argument("duties", nargs="+", choices=DUTIES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{arguments.folder}/meet",
        rank=arguments.rank,
        world_size=arguments.ranks,
    )
    done = {duty: DUTIES[duty](joined(), arguments.folder) for duty in arguments.duties}
    (arguments.folder / f"{arguments.rank}.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main()
