"""From the words of a command line to the objects that they describe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.components import Slots, Tree, merged, nearest
from fewshot_blo.experiments.plan import Plan
from fewshot_blo.experiments.recipes import read_settings

CONFIG = "config"


class HelpWanted(Exception):
    """The words ask for help.

    Attributes:
        place: of the settings; empty for all.
        name: of a component; empty for the one that is chosen.
    """

    def __init__(self, place: str, name: str) -> None:
        super().__init__(place, name)
        self.place, self.name = place, name


@dataclass(frozen=True)
class Options:
    """What a command takes.

    Attributes:
        kinds: dataclasses whose fields are its options.
        positional: the field that words without an option go to; empty for none.
        slots: the places for components.
        files: whether ``--config FILE`` gives settings.
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
        words = list(words)
        _look_for_help(words)
        base, notes = self._read_files(words)
        # What is chosen decides which options there are, and these how words are to be read.
        roughly, _ = merged(base, _tree(_pairs(words, {})))
        types = self._types(self.plans(roughly))
        pairs = list(_pairs(words, types, self.positional))
        self._check(pairs, types)
        tree, more = merged(base, _tree((key, value) for key, value in pairs if key != CONFIG))
        for note in (*notes, *more):
            print(note, flush=True)
        return [plan.build() for plan in self.plans(tree)]

    def plans(self, tree: Tree) -> list[Plan]:
        """Of the dataclasses; each takes its own part of the tree."""
        found = []
        for kind in self.kinds:
            names = kind.__dataclass_fields__
            own = {name: value for name, value in tree.items() if name in names}
            found.append(Plan(self.slots, kind, "", own))
        return found

    def _types(self, plans: Sequence[Plan]) -> dict[str, Any]:
        """The annotation of each option; str for the name of a component."""
        types: dict[str, Any] = {CONFIG: str} if self.files else {}
        for plan in (plan for whole in plans for plan in whole.plans()):
            types |= {plan.at(name): setting.annotation for name, setting in plan.settings.items()}
            types |= {part.place: str for part in plan.parts.values() if part.slot}
        return types

    def _read_files(self, words: Sequence[str]) -> tuple[Tree, list[str]]:
        tree: Tree = {}
        notes: list[str] = []
        for key, value in _pairs(words, {CONFIG: str}) if self.files else ():
            if key != CONFIG:
                continue
            content = read_settings(Path(value))
            tree, more = merged(tree, content)
            notes += more
            for plan in self.plans(tree):
                try:
                    plan.check_names()
                except ConfigurationError as error:
                    raise ConfigurationError(f"{value}: {error}") from error
            unknown = set(content) - {n for kind in self.kinds for n in kind.__dataclass_fields__}
            if unknown:
                raise ConfigurationError(f"{value}: there is no setting '{sorted(unknown)[0]}'")
        return tree, notes

    def _check(self, pairs: Sequence[tuple[str, Any]], types: Mapping[str, Any]) -> None:
        for key, _ in pairs:
            if key not in types:
                raise ConfigurationError(
                    f"there is no option --{key}{nearest(key, list(types))}; --help has them all"
                )


def _look_for_help(words: Sequence[str]) -> None:
    for place, word in enumerate(words):
        if word in ("--help", "-h"):
            raise HelpWanted("", "")
        if word.startswith("--") and word.split("=")[0].endswith(".help"):
            key, _, name = word.partition("=")
            after = words[place + 1] if place + 1 < len(words) else ""
            name = name or ("" if after.startswith("--") else after)
            raise HelpWanted(_name(key.removesuffix(".help")), name)


def _name(word: str) -> str:
    return word.removeprefix("--").replace("-", "_")


def _pairs(
    words: Sequence[str], types: Mapping[str, Any], positional: str = ""
) -> Iterator[tuple[str, Any]]:
    """Options with their values; words that belong to none go to the positional option."""
    rest: list[str] = []
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if not word.startswith("--") or word == "--":
            rest.append(word)
            continue
        key, equals, value = word.partition("=")
        name = _name(key)
        annotation = types.get(name)
        if equals:
            yield name, value
            continue
        end = place
        while end < len(words) and not words[end].startswith("--"):
            end += 1
        if _is_list(annotation):
            yield name, list(words[place:end])
            place = end
        elif annotation is bool and (place == end or words[place].lower() not in ("true", "false")):
            yield name, True
        elif place == end:
            if types and name in types:
                raise ConfigurationError(f"--{name} needs a value")
            yield name, True
        else:
            yield name, words[place]
            place += 1
    if rest and types:
        if not positional:
            raise ConfigurationError(
                f"'{rest[0]}' belongs to no option: options begin with --, as in --help"
            )
        many = _is_list(types[positional])
        if len(rest) > 1 and not many:
            raise ConfigurationError(f"'{rest[1]}' is one word too many after '{rest[0]}'")
        yield positional, rest if many else rest[0]


def _is_list(annotation: Any) -> bool:
    kinds = (annotation, *get_args(annotation))
    return any(get_origin(kind) in (list, Sequence) or kind is list for kind in kinds) or (
        getattr(get_origin(annotation), "__name__", "") == "Sequence"
    )


def _tree(pairs: Iterator[tuple[str, Any]]) -> Tree:
    """Nested by the dots of the names."""
    tree: Tree = {}
    for key, value in pairs:
        *above, last = key.split(".")
        level = tree
        for name in above:
            inner = level.get(name)
            level[name] = inner if isinstance(inner, dict) else _named(inner)
            level = level[name]
        before = level.get(last)
        level[last] = {**before, "name": value} if isinstance(before, dict) else value
    return tree


def _named(value: Any) -> Tree:
    return {} if value is None else {"name": value}
