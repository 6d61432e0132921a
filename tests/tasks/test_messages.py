"""Messages of the data package fit Python and the command line alike: they name settings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fewshot_blo.tasks

MODULES = sorted(Path(fewshot_blo.tasks.__file__).parent.rglob("*.py"))
# A flag, or a keyword argument with its value.
FOREIGN = re.compile(r"(^|\s)--[a-z]|\b[a-z_]+=(True|False)\b")


def messages(tree: ast.AST) -> Iterator[str]:
    """The text of everything that is raised or warned, with {} for what is filled in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) or (
            isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
        ):
            parts = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
            yield "{}".join(part for part in parts if isinstance(part, str))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_messages_name_settings_alone(path: Path) -> None:
    for message in messages(ast.parse(path.read_text(encoding="utf-8"))):
        assert not FOREIGN.search(message), message


@pytest.mark.parametrize(
    "line", ['raise E("lower --way")', 'raise E(f"{x}: use " "download=True") from error']
)
def test_other_words_would_be_noticed(line: str) -> None:
    assert any(FOREIGN.search(message) for message in messages(ast.parse(line)))
