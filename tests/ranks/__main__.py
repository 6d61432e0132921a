"""Several processes against one: every strategy, problem and norm mode, in float64.

PYTHONPATH=tests python -m ranks [--ranks N ...] [--sample]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from ranks.start import start_group

from fewshot_blo.records.tables import markdown

TOLERANCE = 1e-12


def compare(ranks: int, tasks: list[int], *, sample: bool) -> dict[str, float]:
    """Relative errors of a group against one process, by case."""
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "errors.json"
        words = ["--output", str(output), "--tasks", *map(str, tasks)]
        start_group("ranks.same", ranks, *words, *(["--sample"] if sample else []))
        errors: dict[str, float] = json.loads(output.read_text())
        return errors


def main() -> None:
    """Prints a row for each number of processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--tasks", type=int, nargs="+", default=[3, 5], help="tasks of a batch")
    parser.add_argument("--sample", action="store_true")
    arguments = parser.parse_args()
    rows, failed = [], False
    for ranks in arguments.ranks:
        errors = compare(ranks, arguments.tasks, sample=arguments.sample)
        worst = max(errors, key=lambda case: errors[case])
        failed |= errors[worst] > TOLERANCE
        rows.append([str(ranks), str(len(errors)), f"{errors[worst]:.1e}", worst])
        print(rows[-1], flush=True)
    print(markdown(["processes", "cases", "largest error", "of"], rows))
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
