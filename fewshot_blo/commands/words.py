"""The words of a command line as options with their values, and as a tree of settings."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.components import NAME, Tree


def option_name(word: str) -> str:
    """``--train.log-every`` and ``--train.log_every`` are one option."""
    return word.removeprefix("--").replace("-", "_")


def names_in(words: Sequence[str]) -> list[tuple[str, str]]:
    """Each option with the word that may be its value, whatever its type is."""
    found = []
    for place, word in enumerate(words):
        if word == "--":
            break
        if word.startswith("--"):
            key, equals, value = word.partition("=")
            after = words[place + 1] if place + 1 < len(words) else ""
            value = value if equals else "" if after.startswith("--") else after
            found.append((option_name(key), value))
    return found


def pairs_in(
    words: Sequence[str], annotations: Mapping[str, Any], positional: str = ""
) -> Iterator[tuple[str, Any]]:
    """Each option with its value; words that belong to none are those of the positional option.

    Args:
        words: of the command line.
        annotations: type of each option.
        positional: the option of the other words; empty for none.

    Raises:
        ConfigurationError: if an option has no value, or a word belongs to no option.
    """
    rest: list[str] = []
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if word == "--":  # All behind it are no options.
            rest += words[place:]
            break
        if not word.startswith("--"):
            if word.startswith("-") and len(word) > 1:
                raise ConfigurationError(f"there is no option {word}: options begin with --")
            rest.append(word)
            continue
        key, equals, value = word.partition("=")
        name = option_name(key)
        annotation = annotations.get(name)
        end = place
        while end < len(words) and not words[end].startswith("--"):
            end += 1
        if is_list(annotation):
            if not equals and place == end:
                raise ConfigurationError(f"--{name} needs a value")
            values = [value] if equals else list(words[place:end])
            yield name, values[0] if _is_one(annotation, values) else values
            place = place if equals else end
        elif equals:
            yield name, value
        elif annotation is bool and (place == end or words[place] not in ("true", "false")):
            yield name, True
        elif place == end:
            raise ConfigurationError(f"--{name} needs a value")
        else:
            yield name, words[place]
            place += 1
    if rest:
        yield positional, _of_no_option(rest, annotations, positional)


def _of_no_option(rest: list[str], annotations: Mapping[str, Any], positional: str) -> Any:
    if not positional:
        raise ConfigurationError(f"'{rest[0]}' belongs to no option: options begin with --")
    if is_list(annotations[positional]):
        return rest
    if len(rest) > 1:
        raise ConfigurationError(f"'{rest[1]}' is one word too many after '{rest[0]}'")
    return rest[0]


def _is_one(annotation: Any, values: list[str]) -> bool:
    """Whether a word stands for itself: ``[0,1,2]`` as a recipe has it, or a name for all."""
    names = any(kind is str or get_origin(kind) is Literal for kind in get_args(annotation))
    alone = names and get_origin(annotation) in (Union, types.UnionType)
    return len(values) == 1 and (alone or values[0].startswith("["))


def is_list(annotation: Any) -> bool:
    """Whether an option takes several words."""
    kinds = (annotation, *get_args(annotation))
    return any(getattr(get_origin(kind), "__name__", "") in ("list", "Sequence") for kind in kinds)


def tree_of(pairs: Iterable[tuple[str, Any]]) -> Tree:
    """Nested by the dots of the names; a component's own value is its name."""
    tree: Tree = {}
    for key, value in pairs:
        *above, last = key.split(".")
        level = tree
        for name in above:
            inner = level.get(name)
            level[name] = inner if isinstance(inner, dict) else _named(inner)
            level = level[name]
        before = level.get(last)
        level[last] = {**before, NAME: value} if isinstance(before, dict) else value
    return tree


def _named(value: Any) -> Tree:
    return {} if value is None else {NAME: value}
