"""Components by name: the classes that can be chosen, their settings, and building them.

Recipes and the command line name the class that does the work. The arguments of its constructor are
its settings, and its docstring is their help.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from typing_extensions import Self

from fewshot_blo.errors import ConfigurationError, nearest

T = TypeVar("T")
Tree = dict[str, Any]
"""Settings by name. A component is a nested tree, whose ``name`` is its class."""

NAME = "name"


@dataclass(frozen=True)
class Component(Generic[T]):
    """A class with its settings, to be built later, when its remaining arguments are known.

    Attributes:
        kind: the class, or a function that returns an instance.
        settings: arguments of the constructor by name.
    """

    kind: Callable[..., T]
    settings: Mapping[str, Any] = field(default_factory=dict)

    place: ClassVar[str] = ""
    """Of the settings, for messages."""

    def build(self, **given: Any) -> T:
        """Builds the component; given arguments that its constructor does not take are ignored.

        Raises:
            ConfigurationError: if a setting is invalid; the message names its place.
        """
        known = inspect.signature(self.kind).parameters
        with placed(self.place, self.settings):
            return self.kind(**{n: x for n, x in given.items() if n in known}, **self.settings)

    def changed(self, **settings: Any) -> Self:
        """A copy with other settings; those that its constructor does not take are ignored."""
        known = inspect.signature(self.kind).parameters
        own = {name: value for name, value in settings.items() if name in known}
        return dataclasses.replace(self, settings={**self.settings, **own})


@dataclass(frozen=True)
class Slot:
    """A slot for a component: the classes to choose from.

    Attributes:
        noun: noun for the components in messages.
        choices: the classes, or functions that return an instance.
        ending: suffix of the class names that is omitted from the components' names.
        given: arguments of constructors that the program supplies; they are not settings.
        later: the kind of ``Component`` that stands for an object built later; None if the object
            is built at once.
        also: further accepted names, for messages.
        shorthand: returns the settings that a name other than a class stands for, or None.
        usual: returns an object with the default settings of a class here; None for the defaults
            of its constructor.
    """

    noun: str
    choices: Sequence[Callable[..., Any]]
    ending: str = ""
    given: frozenset[str] = frozenset()
    later: type[Component[Any]] | None = None
    also: str = ""
    shorthand: Callable[[str], Tree | None] = lambda name: None
    usual: Callable[[Callable[..., Any]], Any] = lambda kind: None

    def name(self, kind: Callable[..., Any]) -> str:
        """The component's name of a class."""
        return kind.__name__.removesuffix(self.ending)

    @property
    def names(self) -> list[str]:
        """The names of all choices."""
        return [self.name(kind) for kind in self.choices]

    def kind(self, name: str, place: str) -> Callable[..., Any]:
        """The class with a name.

        Raises:
            UnknownComponentError: if there is none; its message has the nearest name.
        """
        for kind in self.choices:
            if name == self.name(kind):
                return kind
        raise UnknownComponentError(place, name, self)


@contextmanager
def placed(place: str, settings: Iterable[str]) -> Iterator[None]:
    """Messages about a setting say where it is; a component does not know where it is used."""
    try:
        yield
    except ConfigurationError as error:
        if not place:
            raise
        known = str(error).partition(" ")[0].partition("[")[0] in settings
        raise ConfigurationError(f"{place}{'.' if known else ': '}{error}") from error


class UnknownComponentError(ConfigurationError):
    """A component of this name does not exist.

    Attributes:
        name: the name that was given.
    """

    def __init__(self, place: str, name: str, slot: Slot) -> None:
        super().__init__(
            f"{place} is '{name}': there is no such {slot.noun}{nearest(name, slot.names)}; "
            f"use one of {', '.join([*slot.names, *filter(None, [slot.also])])}"
        )
        self.name = name


Slots = Mapping[Any, Slot]


def parameters(kind: Callable[..., Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and default of each argument of a constructor.

    The annotation of an optional component is that of the component, without None.
    """
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
    """Settings as plain data; the inverse of building them with ``Plan``."""
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
    """``base`` with the settings of ``over``, and one note for each component that was replaced.

    If ``over`` names another component, the settings of the component in ``base`` are dropped.
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
                    f"{own} is {now}: settings of {was} are dropped ({', '.join(dropped)})"
                )
            before = {}
        result[name], more = merged(dict(before), dict(value), own)
        notes += more
    return result, notes
