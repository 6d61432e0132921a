"""The Python blocks of the documents, and what running one leaves."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# A block with packages that are not among the test requirements is marked py: type checkers of
# documents read python alone.
_BLOCK = re.compile(r"^```py(?:thon)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(document: str) -> list[str]:
    """The blocks of a document, whose path is relative to the repository."""
    return _BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))


def run_block(document: str, number: int) -> dict[str, Any]:
    """The names that a block leaves."""
    # A module of its own, for dataclasses look theirs up.
    module = types.ModuleType(f"{Path(document).stem.lower()}_{number}")
    sys.modules[module.__name__] = module
    name = f"{document}, block {number}"
    exec(compile(blocks(document)[number], name, "exec"), module.__dict__)
    return module.__dict__
