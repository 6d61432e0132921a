"""Columns of images and labels in tables of the library datasets, and the classes of labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.manifest import column_of
from fewshot_blo.tasks.reading.walk import composed

NO_LABEL = "rows without a class"


@dataclass(frozen=True)
class Columns:
    """The columns of images and of labels.

    Attributes:
        image, label: their names.
        names: class names by number, of a label column of the feature ``ClassLabel``; else empty.
    """

    image: str
    label: str
    names: tuple[str, ...]


def features_of(schema: Any) -> Mapping[str, Any]:
    """The features that the library datasets describes in a file, by column; empty if none.

    They are in the JSON of the metadata ``huggingface``, in ``info`` and ``features``
    (huggingface/datasets, arrow_writer.py).
    """
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def columns_of(
    source: str, features: Mapping[str, Any], types: Mapping[str, str], image: str, label: str
) -> Columns:
    """The columns of images and labels, by the library's features or else by types and names.

    Args:
        source: where they are, for errors.
        features: as ``features_of`` returns them.
        types: Arrow's type of each column.
        image, label: names of the columns; empty to find them.

    Raises:
        DataError: if there is no such column, or several that may be meant.
    """
    kinds = {n: f.get("_type") if isinstance(f, dict) else None for n, f in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image" and name in types] or [
        n for n, kind in types.items() if "binary" in kind and "list<" not in kind
    ]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel" and name in types] or [
        n for n, kind in types.items() if kind.startswith(("int", "uint")) or "string" in kind
    ]
    chosen = _chosen(source, "image", image, images, types)
    by = _chosen(source, "label", label, [name for name in labels if name != chosen], types)
    feature = features.get(by)
    names = feature.get("names") if isinstance(feature, dict) else None
    return Columns(chosen, by, tuple(composed(str(name)) for name in names or ()))


def _chosen(
    file: str, setting: str, given: str, found: Sequence[str], types: Mapping[str, str]
) -> str:
    if given:
        if given not in types:
            raise DataError(
                f"{file} has no column '{given}'; its columns are {', '.join(types)}: correct "
                f"{setting}"
            )
        return given
    place = 0 if len(found) == 1 else column_of(found, setting)
    if place is None:
        listed = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        several = f"several columns of {setting}s" if found else f"no column of {setting}s"
        raise DataError(f"{file} has {several}; its columns are {listed}: set {setting} to one")
    return found[place]


def class_of(value: Any, names: Sequence[str], where: str) -> str | None:
    """The class of a label; None for null, empty text and -1, which datasets writes for none.

    Args:
        value: the label.
        names: class names by number; empty where numbers have none.
        where: where it is, for errors.

    Raises:
        DataError: if it is neither an integer nor text, or has no name.
    """
    if value is None or (names and value == -1):
        return None
    if isinstance(value, str):
        return composed(value.strip()) or None
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(
            f"{where}: the label is {str(value)[:40]!r}: it must be an integer or text, one class "
            "an image; name another column of labels"
        )
    if names and not 0 <= value < len(names):
        raise DataError(
            f"{where}: the label is {value}, but there are {len(names)} class names: correct it"
        )
    return names[value] if names else str(value)
