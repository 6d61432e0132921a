"""Mutation testing: makes small changes to the source and lists those that no test detects.

    pip install --editable '.[mutation]'
    nice python scripts/mutation.py --mutants 90 --seed 0

It is not part of CI, because a mutant takes about ten seconds. Cosmic Ray mutates a copy of the
last commit, and the survivors are written to ``docs/results/mutations.md``. An interrupted run is
resumed if the mutated modules have not changed. ``--again`` runs only the survivors, after tests
have been added. For each survivor either a test is added, or a reason in the last column of the
table, which later runs keep."""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Cosmic Ray is imported where it is used: the tests check ``TESTS`` without it.

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs/results/mutations.md"
TIMEOUT = 90.0
"""Seconds for the tests of one mutant; one that takes longer is killed."""

KERNEL, HYPERGRAD = "tests/kernel/test_", "tests/hypergrad/test_"
TESTS: dict[str, list[str]] = {
    "fewshot_blo/kernel/adapt.py": [KERNEL + "adapt.py", HYPERGRAD + "unroll.py"],
    "fewshot_blo/kernel/rules.py": [
        KERNEL + "rules.py",
        KERNEL + "adapt.py",
        "tests/problems/test_initialization.py",
    ],
    "fewshot_blo/kernel/recompute.py": [
        KERNEL + "recompute.py",
        KERNEL + "adapt.py",
        HYPERGRAD + "unroll.py",
    ],
    "fewshot_blo/kernel/layers.py": [
        KERNEL + "layers.py",
        KERNEL + "forward.py",
        "tests/training/test_chunks.py",
    ],
    "fewshot_blo/kernel/statistics.py": [
        KERNEL + "layers.py",
        "tests/training/test_running_statistics.py",
    ],
    "fewshot_blo/hypergrad/bome.py": [HYPERGRAD + "strategy.py", HYPERGRAD + "value_function.py"],
    "fewshot_blo/hypergrad/balance.py": [HYPERGRAD + "curvature.py", HYPERGRAD + "chosen.py"],
    "fewshot_blo/hypergrad/constrained.py": [HYPERGRAD + "kkt.py", "tests/solving/test_limits.py"],
    "fewshot_blo/hypergrad/curvature.py": [HYPERGRAD + "curvature.py", HYPERGRAD + "chosen.py"],
    "fewshot_blo/hypergrad/finite_difference.py": [HYPERGRAD + "finite_difference.py"],
    "fewshot_blo/hypergrad/gradients.py": ["tests/hypergrad"],
    "fewshot_blo/hypergrad/implicit.py": [HYPERGRAD + "strategy.py", HYPERGRAD + "implicit.py"],
    "fewshot_blo/hypergrad/interior_point.py": [HYPERGRAD + "kkt.py"],
    "fewshot_blo/hypergrad/kkt.py": [HYPERGRAD + "kkt.py"],
    "fewshot_blo/hypergrad/linear_solve.py": [
        HYPERGRAD + "linear_solve.py",
        HYPERGRAD + "implicit.py",
    ],
    "fewshot_blo/hypergrad/moreau_envelope.py": [HYPERGRAD + "moreau_envelope.py"],
    "fewshot_blo/hypergrad/penalty.py": [HYPERGRAD + "strategy.py", HYPERGRAD + "penalty.py"],
    "fewshot_blo/hypergrad/reptile.py": [HYPERGRAD + "strategy.py", HYPERGRAD + "reptile.py"],
    "fewshot_blo/hypergrad/strategy.py": ["tests/hypergrad"],
    "fewshot_blo/hypergrad/unroll.py": [HYPERGRAD + "strategy.py", HYPERGRAD + "unroll.py"],
    "fewshot_blo/hypergrad/unrolled_steps.py": [HYPERGRAD + "chosen.py"],
    "fewshot_blo/hypergrad/value_function.py": [
        HYPERGRAD + "strategy.py",
        HYPERGRAD + "value_function.py",
    ],
    "fewshot_blo/hypergrad/amigo.py": [HYPERGRAD + "single_loop.py"],
    "fewshot_blo/hypergrad/saba.py": [HYPERGRAD + "single_loop.py"],
    "fewshot_blo/hypergrad/single_loop.py": [HYPERGRAD + "single_loop.py"],
    "fewshot_blo/hypergrad/soba.py": [HYPERGRAD + "single_loop.py"],
    "fewshot_blo/hypergrad/stocbio.py": [HYPERGRAD + "single_loop.py"],
    "fewshot_blo/hypergrad/dense.py": [HYPERGRAD + "linear_solve.py"],
    "fewshot_blo/hypergrad/newton.py": [HYPERGRAD + "newton.py"],
    "fewshot_blo/hypergrad/minres.py": [HYPERGRAD + "linear_solve.py"],
    "fewshot_blo/hypergrad/nystrom.py": [HYPERGRAD + "linear_solve.py"],
    "fewshot_blo/hypergrad/systems.py": [HYPERGRAD + "linear_solve.py"],
    "tasks/sampler.py": ["tests/tasks/test_sampler.py", "tests/tasks/test_batch.py"],
    "fewshot_blo/evaluation/counts.py": ["tests/evaluation"],
    "fewshot_blo/evaluation/conformal.py": ["tests/evaluation"],
    "fewshot_blo/evaluation/evaluate.py": ["tests/evaluation"],
    "fewshot_blo/evaluation/incremental.py": ["tests/evaluation"],
    "fewshot_blo/evaluation/parts.py": ["tests/evaluation"],
    "fewshot_blo/evaluation/ranking.py": ["tests/evaluation"],
    "fewshot_blo/evaluation/result.py": ["tests/evaluation"],
}
"""For each mutated module, the fast tests that must detect its mutants."""

SLOW = "limit_of_memory"
"""Tests whose names contain this are skipped: they start slow subprocesses."""


def main() -> None:
    """Draws mutants, runs the tests on each, and writes the table of survivors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutants", type=int, default=90, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--again", action="store_true", help="run only survivors")
    options = parser.parse_args()
    from cosmic_ray.work_db import use_db

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        commit = _copy_last_commit(Path(folder))
        _check_that_tests_pass()
        digest = hashlib.sha256(b"".join(Path(name).read_bytes() for name in TESTS)).hexdigest()[:8]
        session = ROOT / "runs" / "mutation" / f"{digest}-{options.mutants}-{options.seed}.sqlite"
        session.parent.mkdir(parents=True, exist_ok=True)
        with use_db(str(session)) as database:
            if not database.num_work_items:
                database.add_work_items(drawn(options.mutants, options.seed))
            items = list(database.pending_work_items)
            if options.again:
                done = database.completed_work_items
                items += [item for item, result in done if not result.is_killed]
            for number, item in enumerate(items, 1):
                result = _tried(item)
                database.set_result(item.job_id, result)
                print(f"{number}/{len(items)} {item.job_id}: {result.test_outcome}", flush=True)
            results = list(database.completed_work_items)
    command = f"python scripts/mutation.py --mutants {options.mutants} --seed {options.seed}"
    TABLE.write_text(_page(results, f"`{command}` on `{commit}`"), encoding="utf-8")


def _copy_last_commit(folder: Path) -> str:
    """Copies the last commit, puts the copy on PYTHONPATH, and returns the short commit hash."""
    with tarfile.open(fileobj=io.BytesIO(_git("archive", "HEAD"))) as tar:
        tar.extractall(folder, filter="data")
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return _git("rev-parse", "--short", "HEAD").decode().strip()


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout


def _command(tests: list[str]) -> str:
    options = f"-x -q -p no:cacheprovider -k 'not {SLOW}' --tb no"
    return f"'{sys.executable}' -m pytest {options} {' '.join(tests)}"


def _check_that_tests_pass() -> None:
    every = sorted({test for tests in TESTS.values() for test in tests})
    if subprocess.run(_command(every), shell=True).returncode:
        raise SystemExit("tests fail without a mutation: fix them before running mutants")


def drawn(count: int, seed: int) -> Iterator[Any]:
    """Mutants of Cosmic Ray at places drawn uniformly from the source.

    Annotations are excluded, because they are not evaluated.

    Args:
        count: number of places.
        seed: seed of the draw.
    """
    from cosmic_ray.commands.init import _all_work_items
    from cosmic_ray.work_item import WorkItem

    places: dict[tuple[str, tuple[int, int]], list[Any]] = {}
    for name in TESTS:
        annotated = annotated_lines(Path(name).read_text(encoding="utf-8"))
        for item in _all_work_items([Path(name)], {}):
            (mutation,) = item.mutations
            if not any(start <= mutation.start_pos < end for start, end in annotated):
                places.setdefault((name, mutation.start_pos), []).append(mutation)
    generator = random.Random(seed)
    for place in generator.sample(sorted(places), min(count, len(places))):
        mutation = generator.choice(places[place])
        operator = mutation.operator_name.rpartition("/")[2]
        yield WorkItem.single(f"{place[0]}:{place[1][0]} {operator} {place[1][1]}", mutation)


def annotated_lines(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Start and end of each annotation as (line, column)."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign | ast.arg):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in found
        if node is not None
    ]


def _tried(item: Any) -> Any:
    from cosmic_ray.mutating import mutate_and_test

    (mutation,) = item.mutations
    return mutate_and_test([mutation], _command(TESTS[str(mutation.module_path)]), TIMEOUT)


def _page(results: list[tuple[Any, Any]], command: str) -> str:
    tried = Counter(str(item.mutations[0].module_path) for item, _ in results)
    alive = [(item, result) for item, result in results if not result.is_killed]
    left = Counter(str(item.mutations[0].module_path) for item, _ in alive)
    why = reasons(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    lines = [
        "# Mutation testing",
        "",
        "A mutant is a small change of the source, on which the tests of its module are run. It is",
        "killed if a test fails. A surviving mutant needs a test, or a reason why it needs none.",
        "",
        f"Generated by {command}, with Cosmic Ray {version('cosmic-ray')}.",
        "Mutants that tests of an earlier commit killed are not run again in unchanged modules.",
        "",
        "| module | mutants | killed | survivors |",
        "|---|---|---|---|",
        *(
            f"| `{module}` | {tried[module]} | {tried[module] - left[module]} | {left[module]} |"
            for module in TESTS
        ),
        f"| all | {tried.total()} | {tried.total() - left.total()} | {left.total()} |",
        "",
        "| survivor | line | mutant | why it needs no test |",
        "|---|---|---|---|",
    ]
    for item, result in sorted(alive, key=lambda pair: str(pair[0].job_id)):
        before, after = changed_line(result.diff)
        place = item.job_id.split()[0]
        lines.append(f"| `{place}` | {before} | {after} | {why.get((before, after), '')} |")
    return "\n".join(lines) + "\n"


def changed_line(diff: str) -> tuple[str, str]:
    """The first removed and the first added line of a unified diff, as cells of a table."""

    def first(sign: str) -> str:
        lines = (line[1:].strip() for line in diff.splitlines() if line.startswith(sign))
        found = next((line for line in lines if line and not line.startswith(sign * 2)), "")
        return "`" + found.replace("|", "\\|") + "`"

    return first("-"), first("+")


def reasons(page: str) -> Mapping[tuple[str, str], str]:
    """The reasons in the table of survivors of a page, by line and mutant."""
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    whole = [row for row in rows if len(row) == 4 and row[1].startswith("`")]
    return {(before, after): why.removesuffix("|").strip() for _, before, after, why in whole}


if __name__ == "__main__":
    main()
