"""Reading pickled data sets without executing code in the pickle."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.tasks.errors import DataError

# dtype.kind of booleans, integers, floats, complex numbers, bytes, text and Python objects.
KINDS = "biufcSUO"


def load_pickle(path: Path) -> Any:
    """Reads a pickle of NumPy arrays and plain containers; any other pickle is refused.

    Allowed are dict, list, tuple, set, str, bytes, numbers, bool, None, OrderedDict, and arrays
    and scalars of numbers, text or objects, with the same restriction on the objects. No callable
    named in the pickle is called: stand-ins rebuild arrays from their bytes, so even NumPy never
    sees a dtype or flag chosen by the pickle. Strings of Python 2 are read as Latin-1, as NumPy
    requires.

    Raises:
        DataError: if the file is missing or truncated, or contains anything else.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except _Refused as error:
        raise DataError(
            f"{path} is refused: it contains {error}, but only NumPy arrays and plain containers "
            "are read; do not use files from a source you do not trust"
        ) from error
    except Exception as error:  # a corrupt pickle raises errors of any kind
        raise DataError(
            f"{path} cannot be unpickled ({type(error).__name__}: {error}): "
            "it is truncated or corrupt; download it again"
        ) from error


def load_dictionary(path: Path, *keys: str) -> dict[str, Any]:
    """Reads a pickled dictionary with at least these keys; keys pickled as bytes become text.

    Raises:
        DataError: if ``load_pickle`` refuses the file, or a key is missing.
    """
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}: it must hold a dictionary")
    named = {as_text(key): value for key, value in content.items()}
    missing = [key for key in keys if key not in named]
    if missing:
        raise DataError(f"{path} has no key {missing[0]!r}; its keys are {sorted(named)[:10]}")
    return named


def as_text(value: object) -> str:
    """A name as text; Python 2 pickled names as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _Refused(Exception):
    """Raised with the part of a pickle that is not allowed."""


class _Dtype:
    """Stands in for ``numpy.dtype``: a simple dtype, of which a pickle may set the byte order."""

    def __init__(self, code: str | bytes, align: bool = False, copy: bool = False) -> None:
        dtype = np.dtype(as_text(code))
        if dtype.kind not in KINDS or dtype.fields is not None or dtype.subdtype is not None:
            raise _Refused(f"an array of type {code!r}")
        self.dtype = dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order: Any
        _, order, subdtype, names, fields, *_ = state
        if (subdtype, names, fields) != (None, None, None):
            raise _Refused(f"a structured array of fields {names!r}")
        order = as_text(order)
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """An array that accepts its state from a pickle only if its dtype is simple."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *version, shape, dtype, fortran_order, content = state
        if isinstance(content, list) and len(content) != math.prod(shape):
            raise ValueError(f"{len(content)} objects do not fill an array of shape {shape}")
        super().__setstate__((*version, shape, _plain(dtype), fortran_order, content))


def _plain(dtype: object) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise _Refused(f"an array of type {dtype!r}")
    return dtype.dtype


def _empty_array(subtype: object, shape: object, code: object) -> _Array:
    """Stands in for ``numpy.core.multiarray._reconstruct``; ``__setstate__`` follows."""
    return _Array((0,), dtype=np.uint8)


def _array_of_buffer(
    buffer: bytes | bytearray, dtype: object, shape: tuple[int, ...], order: str
) -> NDArray[Any]:
    """Stands in for ``numpy.core.numeric._frombuffer``, which pickle protocol 5 uses."""
    flat = np.frombuffer(buffer, _plain(dtype))
    return flat.reshape(shape, order="F" if order == "F" else "C").view(_Array)


def _scalar(dtype: object, content: str | bytes) -> Any:
    """Stands in for ``numpy.core.multiarray.scalar``."""
    return np.frombuffer(_bytes(content), _plain(dtype), count=1)[0]


def _bytes(content: str | bytes = b"", encoding: str = "latin1") -> bytes:
    """Stands in for ``_codecs.encode`` and ``bytes``, with which old protocols encode bytes."""
    return content.encode("latin1") if isinstance(content, str) else content


def _array_type(*_: object) -> None:
    """Stands in for ``numpy.ndarray``, which is only ever an argument of ``_reconstruct``."""
    raise _Refused("a call of numpy.ndarray")


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _array_type,
    ("_codecs", "encode"): _bytes,
    ("__builtin__", "bytes"): _bytes,
    ("collections", "OrderedDict"): OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _STAND_INS[_core + ".multiarray", "_reconstruct"] = _empty_array
    _STAND_INS[_core + ".multiarray", "scalar"] = _scalar
    _STAND_INS[_core + ".numeric", "_frombuffer"] = _array_of_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise _Refused(f"{module}.{name}")
        return stand_in
