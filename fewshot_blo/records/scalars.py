"""Reads single values of settings: numbers, words, paths; and how a value looks in a message.

Numbers of NumPy and PyTorch become those of Python, so that settings are comparable and can be
saved. ``True`` is no number, and 1 is no truth value.
"""

from __future__ import annotations

import inspect
import math
import numbers
import os
import reprlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fewshot_blo.records.ranges import LARGEST_FLOAT, LARGEST_INT, NotEmpty, Range

Reader = Callable[[Any], Any]


class Unfit(Exception):
    """A value that does not fit; the message goes on from "it must be".

    Attributes:
        inside: the entry of a list or mapping that does not fit, and its place, as ``[0]``.
    """

    def __init__(self, words: str, inside: tuple[str, Any] | None = None) -> None:
        super().__init__(words)
        self.inside = inside

    def within(self, place: object, value: Any) -> Unfit:
        """The same, of an entry."""
        further, found = self.inside or ("", value)
        return Unfit(str(self), (f"[{in_brief.repr(place)}]{further}", found))


def in_short(value: Any) -> str:
    """A value for a message, on one line."""
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        shape = list(value.shape)
        return f"a tensor of shape {shape}" if value.ndim else f"a tensor ({value.dtype})"
    if isinstance(value, float | np.floating):
        return str(float(value))
    if (
        isinstance(value, int) and abs(value) > 10**30
    ):  # Python writes out no more than 4300 digits.
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str | int | list | tuple | dict | Path | None):
        with suppress(ValueError):  # Of such a number inside.
            return in_brief.repr(value)
    return with_article(type(value).__name__)


in_brief = reprlib.Repr()
in_brief.maxstring = in_brief.maxother = 80


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[:1] in "AEIOaeio" else f"a {noun}"


def _number(value: Any) -> Any:
    """The number in a scalar of NumPy or PyTorch; anything else as it is."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise Unfit("a number: no gradient reaches a setting, so give a tensor's item()")
    if isinstance(value, np.generic) or (
        isinstance(value, Tensor | np.ndarray) and value.ndim == 0
    ):
        try:
            return value.item()
        except RuntimeError:  # As of a tensor without data.
            return value
    return value


def _bool(marks: Sequence[Any]) -> Reader:
    def read(value: Any) -> bool:
        found = _number(value)
        if not isinstance(found, bool):
            raise Unfit("true or false")
        return found

    return read


def _int(marks: Sequence[Any]) -> Reader:
    allowed = Range.of(marks)
    words = "a whole number" + (f" ({allowed.words})" if allowed.words else "")

    def read(value: Any) -> int:
        found = _number(value)
        if isinstance(found, bool) or not isinstance(found, numbers.Integral):
            raise Unfit(words)
        found = int(found)
        if abs(found) > LARGEST_INT:
            raise Unfit(f"at most {LARGEST_INT}" if found > 0 else f"at least {-LARGEST_INT}")
        if not allowed.has(found):
            raise Unfit(allowed.words + (f", {allowed.why}" if allowed.why else ""))
        return found

    return read


def _as_float(number: Any) -> float:
    """A real number; infinite if it is beyond float64, as large whole numbers are."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _float(marks: Sequence[Any]) -> Reader:
    allowed = Range.of(marks)
    finite = "finite" if allowed.words == "" else f"finite and {allowed.words}"

    def read(value: Any) -> float:
        number = _number(value)
        if isinstance(number, bool) or not isinstance(number, numbers.Real):
            raise Unfit("a number" + (f" ({allowed.words})" if allowed.words else ""))
        found = _as_float(number)
        if math.isnan(found) or (math.isinf(found) and not allowed.infinite):
            raise Unfit(finite)
        if not allowed.has(found):
            raise Unfit(allowed.words + (f", {allowed.why}" if allowed.why else ""))
        if not math.isinf(found) and abs(found) > LARGEST_FLOAT:
            raise Unfit(f"at most {LARGEST_FLOAT:g} in size, the largest number of float32")
        return found

    return read


def _str(marks: Sequence[Any]) -> Reader:
    filled = any(isinstance(mark, NotEmpty) for mark in marks)

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise Unfit("text")
        if "\0" in value:
            raise Unfit("text without the character NUL")
        if filled and not value:
            raise Unfit("text of at least one character")
        return str(value)

    return read


def _path(marks: Sequence[Any]) -> Reader:
    def read(value: Any) -> Path:
        if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
            raise Unfit("a path")
        if "\0" in os.fspath(value):
            raise Unfit("a path without the character NUL")
        return Path(value)

    return read


def _none(marks: Sequence[Any]) -> Reader:
    def read(value: Any) -> None:
        if value is not None:
            raise Unfit("None")

    return read


PLAIN: dict[Any, Callable[[Sequence[Any]], Reader]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    Path: _path,
    type(None): _none,
}
"""By type, the function that makes a reader for the marks of an annotation."""
