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

from jsonargparse import ArgumentError, ArgumentParser
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
        shorthand: from a name that is no class to the component that it stands for, or None.
    """

    noun: str
    choices: Sequence[Callable[..., Any]]
    ending: str = ""
    given: frozenset[str] = frozenset()
    later: type[Component[Any]] | None = None
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
            f"use one of {', '.join(slot.names)}"
        )
        self.name = name


def nearest(name: str, names: Sequence[str]) -> str:
    """``, did you mean ...?`` for a name that is not one of those there are."""
    by_small = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), list(by_small), n=1, cutoff=0.6)
    return f" (did you mean {by_small[close[0]]}?)" if close else ""


Slots = Mapping[Any, Slot]


@dataclass(frozen=True)
class Setting:
    """One setting of a class that is no component.

    Attributes:
        annotation: its type.
        default: where nothing is said.
    """

    annotation: Any
    default: Any


class Plan:
    """A class whose settings are chosen, with those of the components in it.

    Args:
        slots: the places for components, by the annotation of an argument.
        kind: the class; None for a component that may be absent, and is.
        place: its dotted name; empty for the whole.
        tree: what is chosen; changed.
        default: an object of the class, or a ``Component``, whose settings are defaults.
        slot: that it is in.

    Raises:
        ConfigurationError: if a component is unknown.
    """

    def __init__(
        self,
        slots: Slots,
        kind: Callable[..., Any] | None,
        place: str,
        tree: Tree,
        default: Any = None,
        slot: Slot | None = None,
    ) -> None:
        self.kind, self.place, self.slot = kind, place, slot
        self.settings: dict[str, Setting] = {}
        self.parts: dict[str, Plan] = {}
        self.chosen = {name: value for name, value in tree.items() if name != NAME}
        if kind is None:
            return
        given = slot.given if slot else frozenset()
        for name, annotation, fallback in parameters(kind):
            if name in given:
                continue
            known = default.settings if isinstance(default, Component) else vars_of(default)
            value = known.get(name, fallback)
            inner_slot = slots.get(annotation)
            if inner_slot is None and not dataclasses.is_dataclass(annotation):
                self.settings[name] = Setting(annotation, value)
                continue
            own = self.chosen.pop(name, {})
            self.parts[name] = _part(slots, annotation, inner_slot, self.at(name), own, value)

    def at(self, name: str) -> str:
        """The dotted name of a setting."""
        return f"{self.place}.{name}" if self.place else name

    def plans(self) -> Iterator[Plan]:
        """This and all that are in it."""
        yield self
        for part in self.parts.values():
            yield from part.plans()

    def names(self) -> list[str]:
        """The dotted names of all settings."""
        own = [self.at(name) for name in (*self.settings, *self.parts)]
        return own + [name for part in self.parts.values() for name in part.names()]

    def check_names(self) -> None:
        """Raises ConfigurationError where something is chosen that is no setting."""
        every = self.names()
        for plan in self.plans():
            for name in plan.chosen:
                if name not in plan.settings:
                    known = plan.at(name)
                    whose = f" of {plan.kind.__name__}" if plan.slot and plan.kind else ""
                    raise ConfigurationError(
                        f"there is no setting '{known}'{whose}{nearest(known, every)}"
                    )

    def build(self) -> Any:
        """The object, or the ``Component``, with all settings checked.

        Raises:
            ConfigurationError: if a setting is unknown, or its value does not fit.
        """
        self.check_names()
        return self._built()

    def _built(self) -> Any:
        if self.kind is None:
            return None
        values = {
            name: converted(self.at(name), setting.annotation, self.chosen[name])
            for name, setting in self.settings.items()
            if name in self.chosen
        }
        defaults = {
            name: setting.default
            for name, setting in self.settings.items()
            if setting.default is not inspect.Parameter.empty
        }
        parts = {name: part._built() for name, part in self.parts.items()}
        settings = {**defaults, **values, **parts}
        if self.slot and self.slot.later:
            return self.slot.later(self.kind, settings)
        return self.kind(**settings)


def _part(
    slots: Slots, annotation: Any, slot: Slot | None, place: str, own: Any, default: Any
) -> Plan:
    """The plan of a component, or of a group of settings."""
    if slot is None:
        if not isinstance(own, Mapping):
            raise ConfigurationError(f"{place} is {own}: it must be a mapping of settings")
        default = annotation() if default is inspect.Parameter.empty else default
        return Plan(slots, annotation, place, dict(own), default)
    tree = {NAME: own} if isinstance(own, str) else {} if own is None else own
    if not isinstance(tree, Mapping):
        raise ConfigurationError(f"{place} is {own}: it must be the name of a {slot.noun}")
    name = tree.get(NAME)
    if name is not None and (long := slot.shorthand(str(name))) is not None:
        tree = {**tree, **long}
        name = tree[NAME]
    usual = default.kind if isinstance(default, Component) else type(default)
    absent = default is None or default is inspect.Parameter.empty
    kind = slot.kind(str(name), place) if name is not None else None if absent else usual
    known = default if kind is usual else None
    return Plan(slots, kind, place, dict(tree), known, slot)


def parameters(kind: Callable[..., Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and default of the arguments of a constructor; None is left out of unions
    with components."""
    function = kind.__init__ if inspect.isclass(kind) else kind
    hints = get_type_hints(kind if dataclasses.is_dataclass(kind) else function)
    for name, parameter in inspect.signature(kind).parameters.items():
        annotation = hints.get(name, Any)
        if get_origin(annotation) in (Union, types.UnionType):
            rest = [a for a in get_args(annotation) if a is not type(None)]
            annotation = rest[0] if len(rest) == 1 and inspect.isclass(rest[0]) else annotation
            if annotation in (str, int, float, bool):
                annotation = hints[name]
        yield name, annotation, parameter.default


def vars_of(instance: Any) -> Mapping[str, Any]:
    """The settings of an object by name."""
    return {} if instance is None else getattr(instance, "__dict__", {})


def converted(place: str, annotation: Any, value: Any) -> Any:
    """A value as a setting of a type has it.

    Raises:
        ConfigurationError: if it does not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    try:
        return parser.instantiate(parser.parse_object({"value": value})).value
    except ArgumentError as error:
        reason = " ".join(str(error).split()).removeprefix('Parser key "value": ')
        raise ConfigurationError(f"{place} is {value}: {reason}") from error


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
