"""From the words of a command line to the objects that they describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewshot_blo.commands.methods import hint
from fewshot_blo.commands.words import names_in, pairs_in, tree_of
from fewshot_blo.errors import ConfigurationError, nearest
from fewshot_blo.experiments.components import (
    NAME,
    Slots,
    Tree,
    UnknownComponentError,
    merged,
    parameters,
)
from fewshot_blo.experiments.plan import Plan
from fewshot_blo.experiments.recipes import at_home, read_settings

CONFIG = "config"


class HelpWanted(Exception):
    """The words ask for help.

    Attributes:
        place: of the settings; empty for all.
        tree: what the words choose.
    """

    def __init__(self, place: str, tree: Tree) -> None:
        super().__init__(place)
        self.place, self.tree = place, tree


def wants_help(words: Sequence[str]) -> bool:
    """Whether the words ask for help."""
    return bool(_helps(words))


def _helps(words: Sequence[str]) -> list[tuple[str, str]]:
    """The options that ask for help, with the words behind them."""
    named = [("help", "")] if "-h" in words else names_in(words)
    return [pair for pair in named if pair[0] == "help" or pair[0].endswith(".help")]


@dataclass(frozen=True)
class Options:
    """What a command takes.

    Attributes:
        kinds: dataclasses whose fields are its options.
        positional: the field that words without an option go to; empty for none.
        slots: the places for components.
        files: whether ``--config FILE`` gives settings; the first dataclass is then of a run's.
    """

    kinds: tuple[type[Any], ...]
    positional: str = ""
    slots: Slots = field(default_factory=dict)
    files: bool = False

    def parse(self, words: Sequence[str]) -> list[Any]:
        """An object of each of the dataclasses.

        Raises:
            ConfigurationError: if an option is unknown, or its value does not fit.
            HelpWanted: if that is asked for.
        """
        try:
            return self._parse(words)
        except UnknownComponentError as error:
            raise ConfigurationError(f"{error}{hint(error.name)}") from error

    def _parse(self, words: Sequence[str]) -> list[Any]:
        named = names_in(words)
        wanted = _helps(words)
        if any(name == "help" for name, _ in wanted):
            raise HelpWanted("", {})
        named = [pair for pair in named if pair not in wanted]
        base, notes = self._read_files(named)
        # What is chosen decides which options there are, and these how words are to be read.
        roughly = self._with_components(base, named)
        if wanted:
            place, name = wanted[0][0].removesuffix(".help"), wanted[0][1]
            chosen = tree_of([(place, name)]) if name else {}
            raise HelpWanted(place, merged(roughly, chosen)[0])
        plans = self.plans(roughly)
        types = self._types(plans)
        self._check(named, types, plans)
        pairs = [(key, at_home(value)) for key, value in pairs_in(words, types, self.positional)]
        self._check_once([key for key, _ in pairs])
        tree, more = merged(base, tree_of(pair for pair in pairs if pair[0] != CONFIG))
        for note in (*notes, *more):
            print(note, flush=True)
        return [plan.build() for plan in self.plans(tree)]

    def _check_once(self, keys: Sequence[str]) -> None:
        for key in keys:
            if key != CONFIG and keys.count(key) > 1:
                bare = ", the word without an option included" if key == self.positional else ""
                raise ConfigurationError(
                    f"--{key} is given {keys.count(key)} times{bare}: give it once"
                )

    def names(self) -> list[str]:
        """Of the options that there are with the usual components."""
        return list(self._types(self.plans({})))

    def plans(self, tree: Tree) -> list[Plan]:
        """Of the dataclasses; each takes its own part of the tree."""
        found = []
        for kind in self.kinds:
            names = kind.__dataclass_fields__
            own = {name: value for name, value in tree.items() if name in names}
            found.append(Plan(self.slots, kind, "", own))
        return found

    def _with_components(self, base: Tree, named: Sequence[tuple[str, str]]) -> Tree:
        """The settings with the components that options choose, outer ones first."""
        chosen: Tree = {}
        while True:
            roughly, _ = merged(base, chosen)
            plans = [plan for whole in self.plans(roughly) for plan in whole.plans()]
            places = {part.place for plan in plans for part in plan.parts.values() if part.slot}
            now = tree_of((key, value) for key, value in named if key in places and value)
            if now == chosen:
                return roughly
            chosen = now

    def _types(self, plans: Sequence[Plan]) -> dict[str, Any]:
        """The annotation of each option; str for the name of a component."""
        types: dict[str, Any] = {CONFIG: str} if self.files else {}
        for plan in (plan for whole in plans for plan in whole.plans()):
            types |= {plan.at(name): setting.annotation for name, setting in plan.settings.items()}
            types |= {part.place: str for part in plan.parts.values() if part.slot}
        return types

    def _read_files(self, named: Sequence[tuple[str, str]]) -> tuple[Tree, list[str]]:
        tree: Tree = {}
        notes: list[str] = []
        for key, value in named if self.files else ():
            if key != CONFIG or not value:
                continue
            content = read_settings(Path(value))
            tree, more = merged(tree, content)
            notes += more
            known = [name for kind in self.kinds for name in kind.__dataclass_fields__]
            for name in content:
                if name not in known:
                    raise ConfigurationError(
                        f"{value}: there is no setting '{name}'{nearest(name, known)}"
                    )
            try:
                for plan in self.plans(tree):
                    plan.check_names()
                    tree = plan.with_names(tree)
            except UnknownComponentError:
                raise
            except ConfigurationError as error:
                raise ConfigurationError(f"{value}: {error}") from error
        return tree, notes

    def _check(
        self, named: Sequence[tuple[str, str]], types: Mapping[str, Any], plans: Sequence[Plan]
    ) -> None:
        for key, value in named:
            if key in types:
                continue
            place, _, name = key.rpartition(".")
            for plan in (plan for whole in plans for plan in whole.plans()):
                if plan.place == key and key:
                    first = next(iter(plan.names()))
                    raise ConfigurationError(
                        f"--{key} has settings of its own, as --{first}: name one of them"
                    )
                if plan.place == place and plan.slot is not None and name == NAME:
                    raise ConfigurationError(
                        f"there is no option --{key}: write --{place} {value or 'NAME'}"
                    )
            if not key:
                raise ConfigurationError("an option has no name: write --NAME VALUE")
            raise ConfigurationError(
                f"there is no option --{key}{_elsewhere(place, name, plans) or _near(key, types)}"
            )


def _elsewhere(place: str, name: str, plans: Sequence[Plan]) -> str:
    """Which other components at a place have a setting, and which one is chosen."""
    for plan in (plan for whole in plans for plan in whole.plans()):
        if plan.place == place and plan.slot is not None and plan.kind is not None:
            slot = plan.slot
            having = [
                slot.name(kind)
                for kind in slot.choices
                if name in {n for n, _, _ in parameters(kind)} - slot.given
            ]
            if having:
                return f" of {slot.name(plan.kind)}: choose --{place} {' or '.join(having)} for it"
    return ""


def _near(key: str, types: Mapping[str, Any]) -> str:
    """The options that a wrong name may mean: those it begins, then those of the same ending."""
    begun = [name for name in types if name.startswith(key)]
    ending = [name for name in types if name.rpartition(".")[2] == key.rpartition(".")[2]]
    ending.sort(key=lambda name: name.count("."))
    for found in (begun, ending):
        if found and key:
            return f" (did you mean {' or '.join(f'--{name}' for name in found[:3])}?)"
    return nearest(key, list(types)).replace("mean ", "mean --")
