"""Whether two folders hold the same results, bit for bit but for what tells the time."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_runs import assert_identical

from fewshot_blo.records.tensor_files import read_tensors

_TIMES = re.compile(r"(.*/)?(seconds|time|launch|\w+_per_second|provenance|peak_gib|sha256)")
_TIMED = re.compile(r"\d+(\.\d+)? s\b|\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?\S*|-\d+\.(pt|html)")


def difference(wanted: Path, found: Path, *, versions: bool = False) -> str | None:
    """The first difference, as a sentence, or None.

    Args:
        wanted, found: the folders.
        versions: each start may have left a version of its own, NAME-3.pt beside NAME-2.pt, all of
            which must be whole and the same.
    """
    files, others = _files(wanted), _files(found)
    first = {name: name.with_name(_VERSION.sub("-2.", name.name)) for name in others}
    if not versions:
        first = {name: name for name in others}
    if set(first.values()) != files.keys():
        return f"files differ: {sorted(map(str, set(first.values()) ^ files.keys()))}"
    for name, path in others.items():
        if why := different(files[first[name]], path):
            return f"{name} differs: {why}"
    return None


_VERSION = re.compile(r"-\d+\.")


def different(wanted: Path, found: Path) -> str | None:
    """Why a file is not the other but for times, or None."""
    read = _READERS.get(wanted.suffix)
    if read is None:
        return None
    try:
        assert_identical(read(wanted), read(found))
    except Exception as error:  # Whatever a damaged file raises.
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def _files(folder: Path) -> dict[Path, Path]:
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in found.items() if "tensorboard" not in name.parts}


def _untimed(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: _untimed(v) for k, v in content.items() if not _TIMES.fullmatch(str(k))}
    if isinstance(content, list):
        return [_untimed(v) for v in content]
    return "nan" if isinstance(content, float) and math.isnan(content) else content


def _records(path: Path) -> Any:
    records = [_untimed(json.loads(line)) for line in path.read_text().splitlines()]
    # Each start of a run adds its provenance.
    return records[:1] if path.name == "provenance.jsonl" else records


def _rows(path: Path) -> Any:
    with path.open(encoding="utf-8") as file:
        return [_untimed(row) for row in csv.DictReader(file)]


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": lambda path: _untimed(read_tensors(path, "file")),
    ".jsonl": _records,
    ".json": lambda path: _untimed(json.loads(path.read_text())),
    ".csv": _rows,
    ".yaml": Path.read_text,
    ".html": lambda path: _TIMED.sub("", path.read_text(encoding="utf-8")),
}
