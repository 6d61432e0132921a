from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from script_modules import script

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "document_blocks.py"


def test_a_line_of_a_block_keeps_its_number() -> None:
    document = "text\n```python\na = 1\n```\n\n    python\n```python\nb = 2\nc = 3\n```\n"
    assert script("document_blocks").modules(document) == [
        "\n\na = 1\n",
        "\n\n\n\n\n\n\nb = 2\nc = 3\n",
    ]


def test_pages_of_two_folders_have_modules_of_their_own() -> None:
    names = [
        script("document_blocks").module_name(Path(page))
        for page in ("docs/index.md", "docs/start/index.md")
    ]
    assert names == ["docs_index", "docs_start_index"]


def test_every_document_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "blocks"
    folder.mkdir()
    (folder / "old_1.py").touch()
    subprocess.run([sys.executable, SCRIPT, folder], check=True)
    written = {path.stem: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert {"readme_1", "readme_2", "docs_guides_extending_1"} <= set(written)
    assert "old_1" not in written
    for text in written.values():
        ast.parse(text)
