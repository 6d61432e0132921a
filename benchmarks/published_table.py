"""A table of the published problems, printed as it grows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fewshot_blo.studies.published import GROUPS, HELD_OUT_GROUPS, PublishedProblem


def print_table(
    description: str, head: Sequence[str], row: Callable[[str, PublishedProblem], Sequence[str]]
) -> None:
    """Prints a row as soon as it is known, and writes all with ``--output``.

    Args:
        description: of the command.
        head: names of the columns.
        row: cells, from a group and a problem.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--problem", nargs="*", help="names, all by default")
    parser.add_argument("--held-out", action="store_true", help="the held-out problems instead")
    parser.add_argument("--output", type=Path, help="file for the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    print("\n".join(lines))
    for group, problems in (HELD_OUT_GROUPS if arguments.held_out else GROUPS).items():
        for problem in problems:
            if arguments.problem is None or problem.name in arguments.problem:
                lines.append("| " + " | ".join(row(group, problem)) + " |")
                print(lines[-1], flush=True)
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
