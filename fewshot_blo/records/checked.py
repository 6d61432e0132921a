"""``checked``: a class or function whose arguments are checked by their annotations."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.ranges import Range
from fewshot_blo.records.readers import reader
from fewshot_blo.records.scalars import Reader, Unfit, in_short

T = TypeVar("T", bound=Callable[..., Any])


def checked(kind: T) -> T:
    """Checks what a constructor or a function is given, before it runs.

    Types and ranges are those of the annotations, as in ``Annotated[float, AtLeast(0)]``. Numbers
    must be finite, unless ``OrInfinite`` says otherwise. Defaults are not checked. It stands above
    ``@dataclass``.

    Raises:
        ConfigurationError: when it is called with a value that does not fit; the message has the
            name, the value and what it must be.
    """
    made: Any = kind
    if inspect.isclass(made):
        # Not an assignment, which type checkers take for a change of the signature.
        type.__setattr__(made, "__init__", _checking(made.__init__, made))
        return kind
    function: T = _checking(kind, kind)
    return function


def ranges(kind: Callable[..., Any]) -> dict[str, str]:
    """The range of each argument of a constructor in words, where it has one."""
    return {name: limits.words for name, limits in limits_of(kind).items()}


def limits_of(kind: Callable[..., Any]) -> dict[str, Range]:
    """The range of each argument of a constructor, where it has one."""
    found = {name: _range(annotation) for name, annotation in _annotations(kind).items()}
    return {name: limits for name, limits in found.items() if limits.words}


def _checking(function: Any, kind: Callable[..., Any]) -> Any:
    names = tuple(inspect.signature(function).parameters)
    readers: dict[str, Reader] = {}

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if not readers:  # Only now can annotations name what is defined further below.
            readers.update({name: reader(a) for name, a in _annotations(kind).items()})
        given = [_read(name, readers, value) for name, value in zip(names, arguments, strict=False)]
        named = {name: _read(name, readers, value) for name, value in named.items()}
        return function(*given, *arguments[len(names) :], **named)

    return call


def _read(name: str, readers: Mapping[str, Reader], value: Any) -> Any:
    read = readers.get(name)
    if read is None:
        return value
    try:
        return read(value)
    except Unfit as unfit:
        place, found = unfit.inside or ("", value)
        raise ConfigurationError(
            f"{name}{place} is {in_short(found)}: it must be {unfit}"
        ) from None


def _annotations(kind: Callable[..., Any]) -> dict[str, Any]:
    if inspect.isclass(kind) and not dataclasses.is_dataclass(kind):
        kind = kind.__init__
    hints = get_type_hints(kind, include_extras=True)
    hints.pop("return", None)
    return hints


def _range(annotation: Any) -> Range:
    if get_origin(annotation) is Annotated:
        _, *marks = get_args(annotation)
        return Range.of(marks)
    found = [limits for part in get_args(annotation) if (limits := _range(part)).words]
    return found[0] if found else Range()
