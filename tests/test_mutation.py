"""The mutation run without its tool: what it mutates and tests exists, and reasons are kept."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "mutation.py"))
DIFF = """--- a/x.py
+++ b/x.py
@@ -1,2 +1,2 @@
 a = 1
-    b = c | d
+    b = c & d
"""


def test_modules_and_their_tests_exist() -> None:
    for module, tests in SCRIPT["TESTS"].items():
        assert all((ROOT / name).exists() for name in (module, *tests)), module


def test_all_strategies_and_all_of_evaluation_are_mutated() -> None:
    for folder in ("hypergrad", "evaluation"):
        for path in ROOT.glob(f"fewshot_blo/{folder}/[!_]*.py"):
            assert f"fewshot_blo/{folder}/{path.name}" in SCRIPT["TESTS"]


def test_reasons_are_found_by_the_line_and_its_mutant() -> None:
    before, after = SCRIPT["changed_line"](DIFF)
    assert (before, after) == ("`b = c \\| d`", "`b = c & d`")
    page = f"| `m.py` | 3 | 2 | 1 |\n\n| `m.py:2` | {before} | {after} | they are equal |\n"
    assert SCRIPT["reasons"](page) == {(before, after): "they are equal"}


def test_annotations_are_no_places() -> None:
    found = SCRIPT["annotated_lines"]("def f(x: int | None) -> str | None:\n    y: int = 1\n")
    assert sorted(found) == [((1, 9), (1, 19)), ((1, 24), (1, 34)), ((2, 7), (2, 10))]
