"""Errors that nobody expected: one line for the user, and the traceback in a file."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from fewshot_blo import __version__

DEBUG = "--debug"
"""Option of every command that prints the traceback, as FEWSHOT_BLO_DEBUG=1 does."""


def report_unexpected(
    error: Exception, command: str, words: Sequence[str], folder: Path | None = None
) -> int:
    """Prints one line, and writes the traceback to a file; returns the exit status.

    Args:
        error: what was raised.
        command: name of the command.
        words: behind it.
        folder: of the run, where the file goes if it exists and is writable; else a temporary one.
    """
    content = "".join(traceback.format_exception(error))
    if os.environ.get("FEWSHOT_BLO_DEBUG", "0") not in ("", "0") or DEBUG in words:
        print(content, file=sys.stderr)
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    file = _written(
        f"fewshot-blo {__version__}, Python {sys.version.split()[0]}\n"
        f"{command} {' '.join(map(repr, words))}\n\n{content}",
        [folder] if folder is not None and folder.is_dir() else [],
    )
    kept = f"the details are in {file}" if file else f"{DEBUG} shows the details"
    visible = "".join(letter if letter.isprintable() else "?" for letter in reason)
    print(
        f"fewshot-blo {command}: an error of this program, please report it ({visible}); {kept}",
        file=sys.stderr,
    )
    return 1


def _written(content: str, folders: Sequence[Path]) -> Path | None:
    """The file in the first folder that takes it; None if there is none."""
    name = f"fewshot-blo-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in [*folders, Path(tempfile.gettempdir())]:
        try:
            (folder / name).write_text(content, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return folder / name
    return None
