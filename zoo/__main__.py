"""Runs the zoo: ``python -m zoo [--family NAME ...] [--output FILE]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zoo.compare import FAILURES, Row
from zoo.families import FAMILIES, installed, networks
from zoo.pool import run
from zoo.table import line, table, versions


def main() -> int:
    """Runs the zoo; returns 1 if a network disagrees or crashes, else 0."""
    parser = argparse.ArgumentParser(prog="python -m zoo", description=__doc__)
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--name", nargs="+", help="run only networks whose name contains NAME")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    arguments = parser.parse_args()
    chosen = []
    for family in arguments.family:
        if installed(family):
            chosen += networks(family)
        else:
            print(f"{family} is not installed: skipped", flush=True)
    if arguments.name:
        chosen = [n for n in chosen if any(part in n.name for part in arguments.name)]

    done: list[Row] = []

    def report(row: Row) -> None:
        """Rewrites the table after each row, so that an interrupted run leaves one."""
        done.append(row)
        print(line(row), flush=True)
        if arguments.output:
            arguments.output.write_text(table(done, versions()), encoding="utf-8")

    rows = run(chosen, arguments.workers, report)
    if arguments.output:
        arguments.output.write_text(table(rows, versions()), encoding="utf-8")
    failures = [row for row in rows if row.verdict in FAILURES]
    print(f"{len(rows)} networks, {len(failures)} disagree or crash")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
