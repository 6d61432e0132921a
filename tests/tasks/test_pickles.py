from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.pickles import load_dictionary, load_pickle


def write(folder: Path, content: bytes) -> Path:
    path = folder / "data.pkl"
    path.write_bytes(content)
    return path


ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
    np.array([1.5, -2.0], dtype=np.float32),
    np.array([True, False]),
    np.array(["one", "two"]),
    np.array([b"one", b"three"]),
    np.array([[1, "two"], [None, b"four"]], dtype=object),
    np.zeros((0, 3)),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}")
def test_arrays_of_every_protocol(tmp_path: Path, array: np.ndarray, protocol: int) -> None:
    loaded = load_pickle(write(tmp_path, pickle.dumps(array, protocol)))
    assert loaded.dtype == pickle.loads(pickle.dumps(array, protocol)).dtype
    np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers(tmp_path: Path, protocol: int) -> None:
    content = {
        "text": ["one", ("two", None)],
        3: OrderedDict(a=1.5, b=True),
        "scalar": np.int64(7),
        "bytes": b"\x00\xff",
    }
    assert load_pickle(write(tmp_path, pickle.dumps(content, protocol))) == content


def test_names_of_both_numpy_generations(tmp_path: Path) -> None:
    old = pickle.dumps(np.arange(5), 2).replace(b"cnumpy._core.", b"cnumpy.core.")
    new = old.replace(b"cnumpy.core.", b"cnumpy._core.")
    assert new != old
    for content in (new, old):
        np.testing.assert_array_equal(load_pickle(write(tmp_path, content)), np.arange(5))


def test_python_2_pickle(tmp_path: Path) -> None:
    """As Python 2 wrote the published files: byte strings for keys and for array contents."""
    content = (
        b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
        b"q\x03K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x01K\x03\x86q\x08cnumpy\ndtype\nq\x09"
        b"U\x02u1q\x0aK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01|q\x0dNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tq\x0eb\x89U\x03\x07\xc8\xffq\x0ftq\x10bU\x05namesq\x11]q\x12U\x04caf\xe9q\x13au."
    )
    loaded = load_pickle(write(tmp_path, content))
    assert loaded["names"] == ["caf\xe9"]
    np.testing.assert_array_equal(loaded["data"], np.array([[7, 200, 255]], dtype=np.uint8))


class Gadget:
    """Unpickles by calling a function of choice."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


GADGETS = {
    "system": Gadget(os.system, "true"),
    "eval": Gadget(eval, "1"),
    "getattr": Gadget(getattr, "", "join"),
    "numpy.load": Gadget(np.load, "other.npy"),
    "numpy.memmap": Gadget(np.memmap, "other.bin"),
    "numpy.ndarray": Gadget(np.ndarray, (1,), "O", b"12345678"),
    "path": Path("somewhere"),
    "structured": np.zeros(2, dtype=[("a", "i4"), ("b", "O")]),
    "datetime": np.array(["2020-01-01"], dtype="M8[D]"),
}


@pytest.mark.parametrize("wrap", [list, dict, np.array], ids=["list", "dict", "array"])
@pytest.mark.parametrize("gadget", GADGETS.values(), ids=GADGETS)
def test_anything_else_is_refused(tmp_path: Path, gadget: Any, wrap: Any) -> None:
    empty = np.empty(1, dtype=object)
    nested: Any = {list: [gadget], dict: {"key": gadget}, np.array: empty}[wrap]
    if wrap is np.array:
        nested[0] = gadget
    path = write(tmp_path, pickle.dumps(nested))
    with pytest.raises(DataError, match=r"data\.pkl is refused"):
        load_pickle(path)


def test_refusal_names_what_was_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, pickle.dumps(Gadget(os.system, "true")))
    with pytest.raises(DataError, match=rf"contains {os.system.__module__}\.system"):
        load_pickle(path)


def test_object_array_must_be_filled(tmp_path: Path) -> None:
    """NumPy itself reads past the end of the list."""
    content = pickle.dumps(np.array([None], dtype=object), 2).replace(b"K\x01\x85", b"K\x09\x85")
    with pytest.raises(DataError, match="1 objects do not fill"):
        load_pickle(write(tmp_path, content))


def test_every_truncation_is_a_data_error(tmp_path: Path) -> None:
    content = pickle.dumps({"image_data": np.arange(4, dtype=np.uint8), "classes": ["a"]}, 2)
    for length in range(len(content)):
        with pytest.raises(DataError, match=r"data\.pkl"):
            load_pickle(write(tmp_path, content[:length]))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.pkl is missing"):
        load_pickle(tmp_path / "absent.pkl")


def test_dictionary_keys(tmp_path: Path) -> None:
    path = write(tmp_path, pickle.dumps({b"one": 1, "two": 2}))
    assert load_dictionary(path, "one", "two") == {"one": 1, "two": 2}
    with pytest.raises(DataError, match=r"data\.pkl has no key 'three'.*\['one', 'two'\]"):
        load_dictionary(path, "one", "three")
    with pytest.raises(DataError, match="holds a list"):
        load_dictionary(write(tmp_path, pickle.dumps([1])))
