"""Directive ``{command-help}``: what the help of every command prints when the site is built."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from fewshot_blo.commands.main import COMMANDS


class CommandHelp(SphinxDirective):
    """A section for every command, in the order of ``fewshot-blo --help``."""

    def run(self) -> list[nodes.Node]:
        """The help of all commands as sections."""
        sections: list[nodes.Node] = [_block(printed("--help"))]
        for command, says in COMMANDS.items():
            section = nodes.section(ids=[command], names=[command])
            section += nodes.title(text=command)
            section += nodes.paragraph(text=says)
            section += _block(printed(command, "--help"))
            self.state.document.note_explicit_target(section)
            sections.append(section)
        return sections


def printed(*words: str) -> str:
    """What a command prints, 100 characters wide."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "fewshot_blo", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _block(text: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, language="text")


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive with Sphinx."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
