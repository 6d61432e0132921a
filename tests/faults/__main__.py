"""What survives what: every fault of the harness, and a table.

PYTHONPATH=tests python -m faults [--part PART ...] [--program NAME ...] [--each N] [--output FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch

from faults import commands, company, constructors, damage, group, kills, leaks, malice
from faults.programs import programs
from faults.row import Row, table
from fewshot_blo.records.provenance import provenance


def _damage(place: Path, each: int, names: Collection[str]) -> Iterator[Row]:
    """Files of every kind that the project writes, and a released one."""
    made: dict[str, Path] = {}
    for program in programs(place, names):
        if program.name in ("train", "solve", "study", "finetune"):
            folder = place / program.name
            program.prepare(folder)
            program.run(folder)
            made |= {f"{program.name}, {f.name}": f for f in sorted(folder.rglob("*.pt"))[:2]}
    released = Path(__file__).parents[2] / "checkpoints/released/omniglot-5w1s-maml/best.pt"
    yield from damage.measure({**made, "released": released}, place, 2 * each)


def _nonsense(place: Path, each: int, names: Collection[str]) -> Iterator[Row]:
    del place, names
    yield constructors.fuzz()
    yield commands.fuzz(200 * each)


PARTS: dict[str, Callable[[Path, int, Collection[str]], Iterator[Row]]] = {
    "kills": kills.measure,
    "company": lambda place, each, names: company.measure(place, -(-2 * each // 5), names),
    "group": lambda place, each, _: group.measure(place, -(-2 * each // 5)),
    "damage": _damage,
    "malice": lambda place, *_: malice.measure(place),
    "nonsense": _nonsense,
    "leaks": lambda place, each, _: leaks.measure(place, 200 * each, max(5, each)),
}


def main() -> None:
    """Runs the parts one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument(
        "--program", nargs="+", default=[], help="names of commands; all by default"
    )
    parser.add_argument("--each", type=int, default=50, help="kills of a kind for each command")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    rows: list[Row] = []
    for part in arguments.part:
        with tempfile.TemporaryDirectory() as place:
            for row in PARTS[part](Path(place).resolve(), arguments.each, arguments.program):
                print(f"{row.part}, {row.name}: {row.survived} of {row.tried}", flush=True)
                rows.append(row)
    text = table(rows)
    print(text)
    if arguments.output:
        words = f"python -m faults --each {arguments.each} --part {' '.join(arguments.part)}"
        arguments.output.write_text(_document(words, text))
    raise SystemExit(any(row.survived < row.tried for row in rows))


def _document(command: str, text: str) -> str:
    origin = provenance(torch.device("cpu"))
    return (
        "# Faults\n\n"
        "What the program was put through, and how often all was as promised afterwards: results "
        "bit for bit those of a run without a fault, files of before intact, one line instead of "
        "a traceback, and no damaged file loaded. `tests/faults` says what each fault is.\n\n"
        f"`{command}`, commit `{origin['commit']}`, torch {origin['torch']}, "
        f"Python {origin['python']}, {origin['device']}, {origin['cores']} cores.\n\n"
        f"{text}\n"
    )


if __name__ == "__main__":
    main()
