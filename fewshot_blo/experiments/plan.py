"""``Plan``: resolves a tree of names and values to settings, checks them and builds the objects."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fewshot_blo.errors import ConfigurationError, nearest
from fewshot_blo.experiments.components import (
    NAME,
    Component,
    Slot,
    Slots,
    Tree,
    parameters,
    placed,
)
from fewshot_blo.experiments.values import converted, in_words


@dataclass(frozen=True)
class Setting:
    """A setting with a plain value, in contrast to a component or a group of settings.

    Attributes:
        annotation: type of the value.
        default: default of the value.
    """

    annotation: Any
    default: Any


class Plan:
    """A class with the chosen values of its settings, and plans of the components in it.

    Args:
        slots: the slots for components, by the annotation of the argument that takes one.
        kind: the class; None for an optional component that is not chosen.
        place: dotted name of the settings; empty for the root.
        tree: chosen values by name.
        default: an object of the class, or a ``Component``, whose settings are the defaults.
        slot: the slot of the component; None for a class that is not one.

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

    @property
    def own_name(self) -> str:
        """The name of the component that is chosen."""
        assert self.slot is not None
        assert self.kind is not None
        return self.slot.name(self.kind)

    def at(self, name: str) -> str:
        """The dotted name of a setting."""
        return f"{self.place}.{name}" if self.place else name

    def plans(self) -> Iterator[Plan]:
        """This plan and all plans in it, depth first."""
        yield self
        for part in self.parts.values():
            yield from part.plans()

    def names(self) -> list[str]:
        """The dotted names of all settings."""
        own = [self.at(name) for name in (*self.settings, *self.parts)]
        return own + [name for part in self.parts.values() for name in part.names()]

    def check_names(self) -> None:
        """Raises ConfigurationError if a chosen name is not a setting."""
        every = self.names()
        for plan in self.plans():
            for name in plan.chosen:
                if name not in plan.settings:
                    known = plan.at(name)
                    whose = f" of {plan.kind.__name__}" if plan.slot and plan.kind else ""
                    raise ConfigurationError(
                        f"there is no setting '{known}'{whose}{nearest(known, every)}"
                    )

    def with_names(self, tree: Tree) -> Tree:
        """A copy of the tree with the names of components of which it has settings only."""
        named = dict(tree)
        for name, part in self.parts.items():
            own = named.get(name)
            if isinstance(own, Mapping):
                usual = {} if part.slot is None or part.kind is None else {NAME: part.own_name}
                named[name] = part.with_names({**usual, **own})
        return named

    def build(self) -> Any:
        """Checks all settings and builds the object, or the ``Component`` that is built later.

        Raises:
            ConfigurationError: if a setting is unknown, required but missing, or has an invalid
                value.
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
        missing = [name for name in self.settings if name not in settings]
        if missing:
            raise ConfigurationError(
                f"{self.at(missing[0])} is missing: {self.kind.__name__} requires it"
            )
        if self.slot and self.slot.later:
            return self.slot.later(self.kind, settings)
        with placed(self.place, settings):
            return self.kind(**settings)


def _part(
    slots: Slots, annotation: Any, slot: Slot | None, place: str, own: Any, default: Any
) -> Plan:
    """The plan of a component, or of a group of settings."""
    if slot is None:
        if not isinstance(own, Mapping):
            example = next(parameters(annotation))[0]
            raise ConfigurationError(
                f"{place} is {in_words(own)}: it must be a group of settings, such as "
                f"{place}.{example}"
            )
        default = annotation() if default is inspect.Parameter.empty else default
        return Plan(slots, annotation, place, dict(own), default)
    tree = {NAME: own} if isinstance(own, str) else {} if own is None else own
    if not isinstance(tree, Mapping):
        raise ConfigurationError(
            f"{place} is {in_words(own)}: it must be one of {', '.join(slot.names)}"
        )
    name = tree.get(NAME)
    if name is not None and (long := slot.shorthand(str(name))) is not None:
        tree = {**tree, **long}
        name = tree[NAME]
    usual = default.kind if isinstance(default, Component) else type(default)
    absent = default is None or default is inspect.Parameter.empty
    kind = slot.kind(str(name), place) if name is not None else None if absent else usual
    known = default if kind is usual or kind is None else slot.usual(kind)
    return Plan(slots, kind, place, dict(tree), known, slot)


def vars_of(instance: Any) -> Mapping[str, Any]:
    """The attributes of an object by name; empty for None."""
    return {} if instance is None else getattr(instance, "__dict__", {})
