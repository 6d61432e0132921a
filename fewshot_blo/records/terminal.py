"""Names of users on terminals, and output that a reader closes or an encoding cannot hold."""

from __future__ import annotations

import os
import sys
import unicodedata
from contextlib import suppress

CLOSED_PIPE = 141
"""Exit status of a program whose output was closed: that of a shell for the signal SIGPIPE."""

_STRICT = ("strict", "surrogateescape")
# They change the shape of letters, as in emoji and in Persian, and nothing else.
_JOINERS = "\u200c\u200d"


def shown(name: object) -> str:
    """A name as one line that leaves the terminal and the order of its letters as they are.

    Line breaks, escape sequences and other control characters, marks that reverse the direction of
    text, and bytes that are no text are written as in Python's strings, such as ``\\n``.
    """
    return "".join(_visible(letter) for letter in str(name))


def shown_lines(text: object) -> str:
    """As ``shown``, for a message whose line breaks are its own."""
    return "\n".join(map(shown, str(text).split("\n")))


def _visible(letter: str) -> str:
    category = unicodedata.category(letter)
    if category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and letter not in _JOINERS):
        return letter.encode("unicode_escape").decode()
    return letter


def print_anything() -> None:
    """Makes the output write escapes for letters that its encoding lacks, instead of failing."""
    errors = getattr(sys.stdout, "errors", None)
    if errors in _STRICT:
        with suppress(AttributeError):  # A stream of another kind, as in some notebooks.
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def give_up_output() -> None:
    """Sends what is still to be written to a closed output nowhere, so that Python ends quietly."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            with suppress(OSError, ValueError):  # A stream without a file.
                os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
