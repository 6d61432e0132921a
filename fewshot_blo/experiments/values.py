"""Converts values of settings from recipes and the command line to the types that classes take."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser

from fewshot_blo.errors import ConfigurationError, nearest

_ONE = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}
_MANY = {bool: "true or false", int: "whole numbers", float: "numbers", str: "names", Path: "paths"}


def converted(place: str, annotation: Any, value: Any) -> Any:
    """The value converted to the type of a setting.

    Raises:
        ConfigurationError: if the value is invalid; the message says which values are expected.
    """
    value = _infinite(annotation, value)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    try:
        return parser.instantiate(parser.parse_object({"value": value})).value
    except ArgumentError as error:
        near = nearest(value, [str(x) for x in _choices(annotation)]) if _is_text(value) else ""
        raise ConfigurationError(
            f"{place} is {in_words(value)}: it must be {expected(annotation)}{near}"
        ) from error


def _infinite(annotation: Any, value: Any) -> Any:
    """``inf`` and ``nan`` as numbers, which YAML writes as ``.inf`` and ``.nan``."""
    numeric = float in list(_parts(annotation)) and str not in list(_parts(annotation))
    word = value.strip().lstrip("+-").lower() if isinstance(value, str) else ""
    return float(value) if numeric and word in ("inf", "infinity", "nan") else value


def expected(annotation: Any) -> str:
    """The values of a type, as a noun phrase for messages."""
    choices = _choices(annotation)
    kinds = [_kind(part) for part in _parts(annotation) if _known(part)]
    if choices:
        names = [str(choice) for choice in choices if choice != ""]
        kinds.insert(0, f"one of {', '.join(names)}" if len(names) > 1 else names[0])
    return ", or ".join(dict.fromkeys(kinds)) or "another value"


def in_words(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"'{' '.join(map(str, value))}'"
    if isinstance(value, Mapping):
        return "a group of settings"
    return str(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _parts(annotation: Any) -> Iterator[Any]:
    """The members of a union, or the type itself if it is not a union."""
    if get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield annotation


def _choices(annotation: Any) -> list[Any]:
    parts = [part for part in _parts(annotation) if get_origin(part) is Literal]
    return [choice for part in parts for choice in get_args(part)]


def _known(part: Any) -> bool:
    return get_origin(part) is not Literal


def _kind(part: Any) -> str:
    if part is type(None):
        return "null for none"
    if part in _ONE:
        return _ONE[part]
    inside = [kind for kind in get_args(part) if kind is not Ellipsis]
    if get_origin(part) is dict:
        return f"{_MANY.get(inside[1], 'values')} by name, such as {{encoder: 0.1}}"
    if get_origin(part) is tuple and len(inside) == 2:
        return f"two {_MANY.get(inside[0], 'values')} in brackets, such as [5,10]"
    return _MANY.get(inside[0], "values") if inside else "another value"
