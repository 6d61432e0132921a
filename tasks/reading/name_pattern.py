"""Classes in the names of files, as a pattern such as ``{label}_*`` says."""

from __future__ import annotations

import re
from pathlib import Path

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.formats import suffix_of
from fewshot_blo.tasks.reading.walk import composed

_PARTS = {
    "{label}": r"(?P<label>[^/]+?)",
    "{number}": r"\d+",
    "**": r".*",
    "*": r"[^/]*",
    "?": r"[^/]",
}


class NamePattern:
    """Reads the class of a file from its name.

    ``{label}`` is the class, as short as the rest of the pattern allows; ``{number}`` stands for
    digits, ``*`` for anything, ``?`` for one character. A pattern with ``/`` is for the path below
    the folder, and ``**`` stands for any of its folders; another one is for the file's name. The
    suffix may be left out.

    Args:
        pattern: the pattern.

    Raises:
        DataError: if the pattern does not have ``{label}`` once.
    """

    def __init__(self, pattern: str) -> None:
        if pattern.count("{label}") != 1:
            raise DataError(
                f"pattern is '{pattern}': it must have {{label}} once, as in {{label}}_* or "
                "{label}_{number}.jpg"
            )
        self.text = pattern
        split = re.split(r"(\{label\}|\{number\}|\*\*|\*|\?)", composed(pattern))
        self._whole = "/" in pattern
        self._expression = re.compile(
            "".join(_PARTS.get(part) or re.escape(part) for part in split), re.DOTALL
        )

    def label(self, file: Path) -> str:
        """The class of a file, given by its path below the folder; empty if its name differs."""
        name = composed(file.as_posix() if self._whole else file.name)
        # Without the suffix first: it is no part of a class at the end.
        for text in (name.removesuffix(Path(name).suffix * bool(suffix_of(name))), name):
            match = self._expression.fullmatch(text)
            if match:
                return match["label"].strip()
        return ""
