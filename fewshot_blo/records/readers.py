"""Reads values of settings by their annotations: unions, lists, mappings, objects."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import itertools
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
from torch import Tensor
from typing_extensions import get_protocol_members

from fewshot_blo.records.ranges import NotEmpty
from fewshot_blo.records.scalars import PLAIN, Reader, Unfit, in_short, with_article


def reader(annotation: Any) -> Reader:
    """The function that reads values of a type, and raises ``Unfit`` for others."""
    bare, marks = annotation, ()
    if get_origin(annotation) is Annotated:
        bare, *marks = get_args(annotation)  # type: ignore[assignment]
    origin = get_origin(bare) or bare
    if bare is Any:
        return _anything
    if bare in PLAIN:
        return PLAIN[bare](marks)
    if origin is Literal:
        return _literal(get_args(bare))
    if origin in (Union, types.UnionType):
        return _union(get_args(bare))
    if origin is Callable:
        return _called
    if inspect.isclass(origin) and issubclass(origin, tuple) and get_args(bare):
        return _tuple(get_args(bare), marks)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return _mapping(get_args(bare), marks)
    if origin in (list, Sequence, Collection):
        return _sequence(get_args(bare), marks)
    if inspect.isclass(origin) and origin is not object:
        return _protocol(origin) if getattr(origin, "_is_protocol", False) else _instance(origin)
    return _anything


def _anything(value: Any) -> Any:
    return value


def _literal(choices: Sequence[Any]) -> Reader:
    named = [str(choice) or "''" for choice in choices]

    def read(value: Any) -> Any:
        for choice in choices:
            if type(choice) is type(value) and choice == value:
                return choice
        close = difflib.get_close_matches(value.lower(), named, 1) if isinstance(value, str) else []
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise Unfit(f"{'one of ' if len(named) > 1 else ''}{', '.join(named)}{hint}")

    return read


def _union(members: Sequence[Any]) -> Reader:
    # None goes last in messages, as in "a number, or None".
    members = sorted(members, key=lambda member: member is type(None))
    readers = [reader(member) for member in members]
    optional = type(None) in members
    # A value that is of a type keeps it: a path is no text.
    kinds = {member for member in members if inspect.isclass(member) and member not in PLAIN}

    def read(value: Any) -> Any:
        if value is None and optional:
            return None
        if type(value) in kinds:
            return value
        wanted = []
        for own in readers:
            try:
                return own(value)
            except Unfit as unfit:
                wanted.append(str(unfit))
        if optional:
            wanted = [*wanted[:-1], "None"]
        raise Unfit(", or ".join(dict.fromkeys(wanted)))

    return read


def _called(value: Any) -> Any:
    if not callable(value):
        raise Unfit("a function")
    return value


def _entries(value: Collection[Any], readers: Iterable[Reader]) -> list[Any]:
    found = []
    for place, (x, read) in enumerate(zip(value, readers, strict=False)):
        try:
            found.append(read(x))
        except Unfit as unfit:
            raise unfit.within(place, x) from None
    return found


def _filled(value: Collection[Any], marks: Sequence[Any]) -> None:
    if not len(value) and any(isinstance(mark, NotEmpty) for mark in marks):
        raise Unfit("not empty")


def _sequence(inside: Sequence[Any], marks: Sequence[Any]) -> Reader:
    own = reader(inside[0]) if inside else reader(Any)

    def read(value: Any) -> Any:
        listed = isinstance(value, Collection)
        if not listed or isinstance(value, str | bytes | Mapping | Tensor | np.ndarray):
            raise Unfit("a list")
        _filled(value, marks)
        found = _entries(value, itertools.repeat(own))
        same = all(new is old for new, old in zip(found, value, strict=True))
        return value if same else found

    return read


def _tuple(inside: Sequence[Any], marks: Sequence[Any]) -> Reader:
    repeated = len(inside) == 2 and inside[1] is Ellipsis
    readers = [reader(part) for part in inside if part is not Ellipsis]

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, tuple | list):
            raise Unfit("a tuple" if repeated else f"a tuple of {len(inside)} values")
        if not repeated and len(value) != len(inside):
            raise Unfit(f"a tuple of {len(inside)} values")
        _filled(value, marks)
        return tuple(_entries(value, itertools.cycle(readers) if repeated else readers))

    return read


def _mapping(inside: Sequence[Any], marks: Sequence[Any]) -> Reader:
    names, values = (reader(part) for part in inside or (Any, Any))

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise Unfit("a mapping")
        _filled(value, marks)
        found = {}
        for name, x in value.items():
            try:
                found[names(name)] = values(x)
            except Unfit as unfit:
                raise unfit.within(name, x) from None
        same = all(value.get(name) is x for name, x in found.items())
        return value if same else found

    return read


def _instance(kind: type[Any]) -> Reader:
    def read(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        raise Unfit(f"{with_article(kind.__name__)}{_remedy(kind, value)}")

    return read


def _remedy(kind: Any, value: Any) -> str:
    """How to write what was probably meant: ``InnerSteps(5)`` for 5."""
    if inspect.isclass(value) and issubclass(value, kind):
        return f": call the class, {value.__name__}()"
    if not dataclasses.is_dataclass(kind):
        return ""
    make: Any = kind
    given = in_short(value) if isinstance(value, float | int) else "..."
    try:
        make(value)
    except Exception:  # Whatever a constructor makes of it: this is a hint.
        given = "..."
    return f": write {make.__name__}({given})"


def _protocol(kind: type[Any]) -> Reader:
    members = sorted(get_protocol_members(kind))
    known: set[type] = set()  # Strategies build inner steps at every outer step: look once.

    def read(value: Any) -> Any:
        if type(value) in known:
            return value
        if inspect.isclass(value):
            raise Unfit(f"an object: call the class, {value.__name__}()")
        if all(hasattr(value, member) for member in members):
            # Not by hasattr: of a class, that finds what its metaclass has, as __call__.
            own = set().union(*map(vars, type(value).__mro__))
            if own.issuperset(members):
                known.add(type(value))
            return value
        raise Unfit(f"{with_article(kind.__name__)}, an object with {', '.join(members)}")

    return read
