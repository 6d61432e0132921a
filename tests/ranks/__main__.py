"""Several processes against one: every strategy, problem and norm mode, in float64.

PYTHONPATH=tests python -m ranks [--ranks N ...]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from fewshot_blo.records.tables import markdown
from ranks.start import start_group

TOLERANCE = {"finite differences": 1e-11, "": 1e-12}
"""By the strategy's name: finite differences divide rounding by their length, here 0.1."""


def main() -> None:
    """Prints a row for each number of processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    arguments = parser.parse_args()
    rows, failed = [], False
    for ranks in arguments.ranks:
        with tempfile.TemporaryDirectory() as place:
            made = start_group(Path(place), ranks, "every case", seconds=7200)
        errors: dict[str, float] = made[0]["every case"]
        left = dict(errors)
        for kind, most in TOLERANCE.items():
            own = {case: left.pop(case) for case in errors if case in left and kind in case}
            worst = max(own, key=lambda case: own[case])
            failed |= own[worst] > most
            rows.append([str(ranks), kind or "others", str(len(own)), f"{own[worst]:.1e}", worst])
            print(rows[-1], flush=True)
    print(markdown(["processes", "strategies", "cases", "largest error", "of (tasks; case)"], rows))
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
