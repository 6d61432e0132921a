"""Names of classes and files as text: what cannot be seen is written as an escape."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"
"""Zero-width joiners, which Indic and Persian names and emoji need."""


def shown(text: str) -> str:
    r"""The text with control characters, line breaks and lone surrogates as in ``\n``."""
    return "".join(
        c if c.isprintable() or c in _JOINERS or unicodedata.category(c) == "Zs" else _escaped(c)
        for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop, and no line break before a per cent sign."""
    return (text[:1].upper() + text[1:] + ".").replace(" %", "\u00a0%") if text else ""
