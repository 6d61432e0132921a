"""Image formats: which files hold an image that Pillow reads, by suffix or by content."""

from __future__ import annotations

import functools
import importlib
import re
from contextlib import suppress
from pathlib import Path

from PIL import Image

from fewshot_blo.errors import pip_install

BY_CONTENT = (
    *("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF", "JPEG2000", "PSD", "QOI"),
    *("ICO", "ICNS", "DDS"),
)
"""Formats whose first bytes are unmistakable: a damaged file or a text is not taken for another."""

# EPS starts another program and WMF needs Windows; the others are a video and stubs without a
# decoder.
_NOT_READ = frozenset({"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "IPTC"})
_HEIC = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
_AVIF = frozenset({".avif", ".avifs"})


@functools.cache
def suffixes() -> dict[str, str]:
    """The format of every suffix that Pillow reads, HEIC among them where its extra is installed.

    Suffixes are in lower case, with their dot.
    """
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    known = {
        suffix: name
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NOT_READ
    }
    # Pillow opens the pictures of stereo cameras as JPEG.
    return {**known, ".mpo": "JPEG"}


def suffix_of(name: str) -> str:
    """The suffix of a file name in lower case; empty if what follows the last dot is no word.

    Such as in ``IMG.0001`` and ``St. Bernard 3``.
    """
    last = Path(name).name if "/" in name else name
    dot = last.rfind(".")
    suffix = last[dot:].lower() if 0 < dot < len(last) - 1 else ""
    return suffix if _is_word(suffix) else ""


@functools.lru_cache(maxsize=1024)
def _is_word(suffix: str) -> bool:
    return re.fullmatch(r"\.\w*[^\W\d_][\w~+-]*", suffix) is not None


def remedy(suffix: str) -> str:
    """What to install for a suffix of an image that is not read here; empty if nothing is known."""
    if suffix in suffixes():
        return ""
    if suffix in _HEIC:
        return pip_install(".[heic]")
    return "install Pillow 11.3 or later" if suffix in _AVIF else ""


def readable(name: str) -> tuple[str, ...]:
    """The formats to try on a file of this name: those known by content and that of its suffix."""
    own = suffixes().get(suffix_of(name))
    known = tuple(found for found in BY_CONTENT if found in Image.OPEN)
    return known if own is None or own in known else (*known, own)


def is_image(path: Path) -> bool:
    """Whether a regular file is an image: by its suffix, or without one by its content."""
    suffix = suffix_of(path.name)
    if suffix:
        return suffix in suffixes()
    try:
        with Image.open(path, formats=readable("")):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # Pillow's decoders raise errors of any kind on what is not theirs.
        return False
