"""Components by name: which classes there are for a place, and how one is chosen and built.

A component is its own settings: the class that does the work is what a recipe and the command line
name, and the arguments of its constructor are the settings, with the help of its docstring.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from typing_extensions import Self

from fewshot_blo.errors import ConfigurationError

T = TypeVar("T")
Tree = dict[str, Any]
"""Settings by name, those of a component in a tree of their own, with its class as ``name``."""

NAME = "name"


@dataclass(frozen=True)
class Component(Generic[T]):
    """A class with its settings, built later from what the program knows by then.

    Attributes:
        kind: the class, or a function that returns one of its objects.
        settings: arguments by name.
    """

    kind: Callable[..., T]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self, **given: Any) -> T:
        """The component, with those of the given arguments that its constructor has."""
        known = inspect.signature(self.kind).parameters
        return self.kind(**{n: x for n, x in given.items() if n in known}, **self.settings)

    def changed(self, **settings: Any) -> Self:
        """The same with other settings; those that its constructor has not are left out."""
        known = inspect.signature(self.kind).parameters
        own = {name: value for name, value in settings.items() if name in known}
        return dataclasses.replace(self, settings={**self.settings, **own})


@dataclass(frozen=True)
class Slot:
    """A place for a component.

    Attributes:
        noun: what the components are, for messages.
        choices: their classes.
        ending: of class names, which is left out of their names here.
        given: arguments of constructors that the program gives, which are no settings.
        later: the kind of ``Component`` that takes the place of an object; None for an object.
        also: other names that are understood, for messages.
        shorthand: from a name that is no class to the component that it stands for, or None.
    """

    noun: str
    choices: Sequence[Callable[..., Any]]
    ending: str = ""
    given: frozenset[str] = frozenset()
    later: type[Component[Any]] | None = None
    also: str = ""
    shorthand: Callable[[str], Tree | None] = lambda name: None

    def name(self, kind: Callable[..., Any]) -> str:
        """Of a class."""
        return kind.__name__.removesuffix(self.ending)

    @property
    def names(self) -> list[str]:
        """Of all choices."""
        return [self.name(kind) for kind in self.choices]

    def kind(self, name: str, place: str) -> Callable[..., Any]:
        """The class of a name.

        Raises:
            UnknownComponentError: if there is none; with the names that are alike.
        """
        for kind in self.choices:
            if name in (self.name(kind), kind.__name__):
                return kind
        raise UnknownComponentError(place, name, self)


class UnknownComponentError(ConfigurationError):
    """A component is named that there is not.

    Attributes:
        name: that was given.
    """

    def __init__(self, place: str, name: str, slot: Slot) -> None:
        super().__init__(
            f"{place} is '{name}': there is no such {slot.noun}{nearest(name, slot.names)}; "
            f"use one of {', '.join([*slot.names, *filter(None, [slot.also])])}"
        )
        self.name = name


def nearest(name: str, names: Sequence[str]) -> str:
    """``, did you mean ...?`` for a name that is not one of those there are."""
    by_small = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), list(by_small), n=1, cutoff=0.6)
    return f" (did you mean {by_small[close[0]]}?)" if close else ""


Slots = Mapping[Any, Slot]


def parameters(kind: Callable[..., Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and default of the arguments of a constructor; None is left out of unions
    with components."""
    constructs = inspect.isclass(kind) and not dataclasses.is_dataclass(kind)
    hints = get_type_hints(kind.__init__ if constructs else kind)
    for name, parameter in inspect.signature(kind).parameters.items():
        annotation = hints.get(name, Any)
        if get_origin(annotation) in (Union, types.UnionType):
            rest = [a for a in get_args(annotation) if a is not type(None)]
            annotation = rest[0] if len(rest) == 1 and inspect.isclass(rest[0]) else annotation
            if annotation in (str, int, float, bool):
                annotation = hints[name]
        yield name, annotation, parameter.default


def plain(slots: Slots, value: Any, annotation: Any = None) -> Any:
    """Settings as plain data, from which ``Plan`` builds them again."""
    slot = slots.get(annotation)
    if isinstance(value, Component):
        kind, settings = value.kind, value.settings
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind, settings = (
            type(value),
            {f.name: getattr(value, f.name) for f in dataclasses.fields(value)},
        )
    elif isinstance(value, tuple | list):
        return [plain(slots, x) for x in value]
    elif isinstance(value, Mapping):
        return {name: plain(slots, x) for name, x in value.items()}
    else:
        return value if isinstance(value, str | int | float | bool | None) else str(value)
    hints = {name: hint for name, hint, _ in parameters(kind)}
    own = {name: plain(slots, x, hints.get(name)) for name, x in settings.items()}
    return {NAME: slot.name(kind), **own} if slot else own


def merged(base: Tree, over: Tree, place: str = "") -> tuple[Tree, list[str]]:
    """Settings with others laid over them, and what is left out for it, in sentences.

    Where another component is named, the settings of the one before are left out.
    """
    result, notes = dict(base), []
    for name, value in over.items():
        own = f"{place}.{name}" if place else name
        before = result.get(name)
        value = {NAME: value} if isinstance(before, Mapping) and isinstance(value, str) else value
        if isinstance(before, str) and isinstance(value, Mapping):
            before = {NAME: before}
        if not (isinstance(before, Mapping) and isinstance(value, Mapping)):
            result[name] = value
            continue
        was, now = before.get(NAME), value.get(NAME)
        if now is not None and was is not None and now != was:
            dropped = [n for n in before if n != NAME]
            if dropped:
                notes.append(
                    f"{own} is {now}: settings of {was} are left out ({', '.join(dropped)})"
                )
            before = {}
        result[name], more = merged(dict(before), dict(value), own)
        notes += more
    return result, notes
