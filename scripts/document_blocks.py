"""Writes the Python blocks of README.md and docs/ as modules, which type checkers read.

Each block is a module of its own, as ``FOLDER/docs_guides_data_1.py``. It has the lines of its
document's block at the same numbers, so that a type checker names the line of the document.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def main() -> None:
    """Replaces the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the modules go; what it has is deleted")
    folder = parser.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for number, module in enumerate(modules(document.read_text(encoding="utf-8")), 1):
            name = f"{module_name(document.relative_to(ROOT))}_{number}.py"
            (folder / name).write_text(module, encoding="utf-8")


def module_name(document: Path) -> str:
    """Of a document by its path in the repository: pages of two folders may have one name."""
    return "_".join(document.with_suffix("").parts).lower().replace("-", "_")


def modules(document: str) -> list[str]:
    """The Python blocks of a document, each with an empty line for every line before it."""
    return ["\n" * document.count("\n", 0, m.start(1)) + m[1] for m in _BLOCK.finditer(document)]


if __name__ == "__main__":
    main()
