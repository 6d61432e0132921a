"""The Python blocks of the documents, the tests that run them, and what running one leaves."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# A block with packages that are not among the test requirements is marked py: type checkers of
# documents read python alone.
_BLOCK = re.compile(r"^```py(?:thon)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)

TESTED: Mapping[str, tuple[str, int]] = {
    "README.md": ("tests/test_readme.py", 2),
    "docs/guides/any_task.md": ("tests/test_any_task.py", 6),
    "docs/guides/data.md": ("tests/test_guides.py", 1),
    "docs/guides/extending.md": ("tests/test_extending.py", 2),
    "docs/guides/loggers.md": ("tests/records/test_loggers.py", 2),
    "docs/guides/models.md": ("tests/models/test_page.py", 3),
    "docs/guides/protocols.md": ("tests/test_protocols_page.py", 3),
    "docs/guides/scaling.md": ("tests/test_readme.py", 2),
    "docs/guides/transductive.md": ("tests/test_guides.py", 1),
    "docs/guides/tuning.md": ("tests/experiments/tuning/test_tune.py", 1),
    "docs/migrating/easyfsl.md": ("tests/test_migrating.py", 2),
    "docs/migrating/higher.md": ("tests/test_migrating.py", 2),
    "docs/migrating/index.md": ("tests/test_migrating.py", 1),
    "docs/migrating/learn2learn.md": ("tests/test_migrating.py", 2),
    "docs/migrating/torchmeta.md": ("tests/test_migrating.py", 1),
    "docs/migrating/torchopt.md": ("tests/test_migrating.py", 4),
    "docs/start/bilevel.md": ("tests/test_guides.py", 1),
}
"""The test that runs the blocks of a page, and the number of blocks it runs."""


def blocks(document: str) -> list[str]:
    """The blocks of a document, whose path is relative to the repository."""
    return _BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))


def run_block(document: str, number: int) -> dict[str, Any]:
    """The names that a block leaves."""
    # A module of its own, for dataclasses look theirs up.
    stem = "_".join(Path(document).with_suffix("").parts).lower()
    module = types.ModuleType(f"{stem}_{number}")
    sys.modules[module.__name__] = module
    name = f"{document}, block {number}"
    exec(compile(blocks(document)[number], name, "exec"), module.__dict__)
    return module.__dict__
