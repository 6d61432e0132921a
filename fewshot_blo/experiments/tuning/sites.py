"""The settings of a recipe that can be searched, with their types, values and limits."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from fewshot_blo.errors import ConfigurationError, nearest
from fewshot_blo.experiments.components import NAME, Tree
from fewshot_blo.experiments.plan import Plan
from fewshot_blo.experiments.settings import SLOTS, Config
from fewshot_blo.records.checked import limits_of
from fewshot_blo.records.ranges import Range

_MEASURES = (
    "data",
    "episodes.validation_way",
    "episodes.validation_shot",
    "episodes.validation_query",
    "train.validate_every",
    "train.validation_tasks",
    "train.norm",
)
_MACHINE = (
    "device",
    "start_from",
    "train.chunk",
    "train.graph",
    "train.log_every",
    "train.memory",
    "train.save_minutes",
    "train.loggers",
    "problem.backend",
)


@dataclass(frozen=True)
class Site:
    """A setting of the recipe.

    Attributes:
        name: its dotted name.
        annotation: type of its values; str for the name of a component.
        value: the recipe's.
        limits: numbers that are allowed.
        choices: the values to choose from, those of a component, a Literal or a truth value.
        is_component: whether it names a component.
    """

    name: str
    annotation: Any
    value: Any
    limits: Range = Range()
    choices: tuple[Any, ...] = ()
    is_component: bool = False

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole ones."""
        return int in _parts(self.annotation) and float not in _parts(self.annotation)

    @property
    def numeric(self) -> bool:
        """Whether it takes numbers."""
        return not self.choices and bool({int, float} & set(_parts(self.annotation)))


def sites_of(settings: Tree) -> dict[str, Site]:
    """All settings of a recipe by their dotted names.

    Args:
        settings: as ``Config.plain`` returns them.
    """
    plan = Plan(SLOTS, Config, "", settings)
    return {site.name: site for part in plan.plans() for site in _of_plan(part)}


def _of_plan(plan: Plan) -> Iterator[Site]:
    limits = {} if plan.kind is None else limits_of(plan.kind)
    for name, setting in plan.settings.items():
        value = plan.chosen.get(name, setting.default)
        choices = _choices(setting.annotation)
        yield Site(
            plan.at(name), setting.annotation, value, limits.get(name, Range()), tuple(choices)
        )
    for part in plan.parts.values():
        if part.slot is not None:
            chosen = None if part.kind is None else part.own_name
            yield Site(part.place, str, chosen, choices=tuple(part.slot.names), is_component=True)


def site_named(sites: Mapping[str, Site], name: str) -> Site:
    """The setting with a name.

    Raises:
        ConfigurationError: if there is none, or it must be the same in all trials.
    """
    if _within(name, _MEASURES):
        raise ConfigurationError(
            f"{name} cannot be searched: it decides what is measured, which must be the same in "
            "all trials; set it in the recipe"
        )
    if name.rpartition(".")[2] == "seed":
        raise ConfigurationError(
            f"{name} cannot be searched: the best of several seeds is luck; train the best "
            "settings with several seeds (compare --seeds)"
        )
    if _within(name, _MACHINE):
        raise ConfigurationError(f"{name} cannot be searched: set it in the recipe")
    site = sites.get(name)
    if site is None:
        raise ConfigurationError(
            f"there is no setting '{name}' in the recipe{_whose(name, sites)}{_near(name, sites)}"
        )
    return site


def _whose(name: str, sites: Mapping[str, Site]) -> str:
    """The component at whose place the setting would be, as it may be another one's."""
    above = [site for site in sites.values() if name.startswith(f"{site.name}.")]
    if not above:
        return ""
    deepest = max(above, key=lambda site: len(site.name))
    return f", whose {deepest.name} is {deepest.value or 'none'}"


def _near(name: str, sites: Mapping[str, Site]) -> str:
    """The settings that a wrong name may mean: the nearest, or those of the same ending."""
    known = [site.name for site in sites.values() if not site.is_component]
    if near := nearest(name, known):
        return near
    ending = [n for n in known if name and n.endswith(f".{name.rpartition('.')[2]}")]
    return f" (did you mean {' or '.join(ending[:3])}?)" if ending else ""


def _within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _parts(annotation: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for part in get_args(annotation) for inner in _parts(part)]
    return [annotation]


def _choices(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for part in _parts(annotation):
        if get_origin(part) is Literal:
            found += [choice for choice in get_args(part) if choice != ""]
        elif part is bool:
            found += [False, True]
    return found


def nested(name: str, value: Any) -> Tree:
    """A tree with one setting, by its dotted name."""
    *above, last = name.split(".")
    tree: Tree = {last: value}
    for part in reversed(above):
        tree = {part: tree}
    return tree


def value_at(settings: Tree, name: str) -> Any:
    """The value of a setting in a tree; the name of a component; None if it is not there."""
    level: Any = settings
    for part in name.split("."):
        level = level.get(part) if isinstance(level, Mapping) else None
    return level.get(NAME) if isinstance(level, Mapping) else level
