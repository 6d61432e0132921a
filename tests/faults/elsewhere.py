"""A folder for whatever nonsense makes a program write by a relative path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def elsewhere(place: Path) -> Iterator[Path]:
    """Makes ``place`` the working folder and the home folder."""
    before, home = Path.cwd(), os.environ.get("HOME", "")
    os.chdir(place)
    os.environ["HOME"] = str(place)
    try:
        yield place
    finally:
        os.chdir(before)
        os.environ["HOME"] = home
