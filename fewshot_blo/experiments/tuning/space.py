"""The space of a search: ranges and choices of settings, as they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.components import Tree, merged
from fewshot_blo.experiments.recipes import read_yaml
from fewshot_blo.experiments.settings import Config, config_from
from fewshot_blo.experiments.tuning.sites import Site, nested, site_named, sites_of, value_at
from fewshot_blo.experiments.tuning.usual import usual_names, usual_values
from fewshot_blo.experiments.values import converted, in_words

if TYPE_CHECKING:
    from optuna.trial import Trial

USUAL = "usual"


@dataclass(frozen=True)
class Axis:
    """A searched setting.

    Attributes:
        name: its dotted name.
        value: the recipe's.
        low, high: ends of the range, included; 0 for choices.
        whole: whether the numbers are whole ones.
        log: whether the range is searched on a logarithmic scale.
        choices: the values, where it is not a range.
    """

    name: str
    value: Any
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: Trial) -> Any:
        """The value of a trial, which Optuna draws and records at the first call."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether a value is one of the range or the choices."""
        if self.choices:
            return any(value == c and type(value) is type(c) for c in self.choices)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high

    def __str__(self) -> str:
        if self.choices:
            return f"{self.name}={','.join(in_words(c).strip(chr(39)) for c in self.choices)}"
        return f"{self.name}={self.low:g}..{self.high:g}{':log' if self.log else ''}"


@dataclass(frozen=True)
class Space:
    """The settings of a recipe and the axes along which they are searched.

    Attributes:
        base: settings of the recipe as plain data.
        axes: what is searched.
    """

    base: Tree
    axes: tuple[Axis, ...]

    def config(self, values: Mapping[str, Any]) -> Config:
        """The settings of a trial.

        Args:
            values: those of the axes by name.

        Raises:
            ConfigurationError: if they contradict each other.
        """
        tree = self.base
        for name, value in values.items():
            tree, _ = merged(tree, nested(name, value))
        return config_from(tree)


def make_space(config: Config, words: Sequence[str]) -> Space:
    """The space that words describe; the usual settings where there are none.

    Args:
        config: settings of the recipe.
        words: ``NAME=LOW..HIGH``, ``NAME=LOW..HIGH:log``, ``NAME=CHOICE,CHOICE``, ``NAME`` or
            ``usual``.

    Raises:
        ConfigurationError: if a word names no setting that can be searched, or its range does not
            fit the setting or lacks the recipe's value.
    """
    base = config.plain()
    sites = sites_of(base)
    named = dict(_named(words or (USUAL,)))
    if USUAL in named:
        del named[USUAL]
        named = {**dict.fromkeys(usual_names(sites), ""), **named}
    if not named:
        raise ConfigurationError(
            "the recipe has none of the settings that are usually searched: name some with "
            "--search, as --search train.weight_decay=0..0.1"
        )
    axes = [_axis(site_named(sites, name), text) for name, text in named.items()]
    for axis in axes:
        for other in axes:
            if other.name.startswith(f"{axis.name}."):
                raise ConfigurationError(
                    f"{axis.name} and {other.name} are both searched, and not every {axis.name} "
                    f"has it: search one of them"
                )
    return Space(_with_validation(base, axes), tuple(axes))


def words_of(path: Path) -> list[str]:
    """The words that a YAML file of a space stands for.

    Raises:
        ConfigurationError: if it cannot be read, or is not a mapping of ranges and choices.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path} is no space: it must hold a mapping, as train.learning_rate: 1e-4..1e-2:log"
        )
    return [_word(path, str(name), value) for name, value in content.items()]


def _word(path: Path, name: str, value: object) -> str:
    if isinstance(value, dict):
        raise ConfigurationError(
            f"{path}: {name} is a group: write dotted names, as train.learning_rate: 1e-4..1e-2:log"
        )
    if value is None:
        return name
    values = value if isinstance(value, list) else [value]
    return f"{name}={','.join(in_words(v).strip(chr(39)) for v in values)}"


def _named(words: Iterable[str]) -> Iterable[tuple[str, str]]:
    seen = set()
    for word in words:
        name, _, text = word.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if name in seen:
            raise ConfigurationError(f"{name} is searched twice: name it once")
        seen.add(name)
        yield name, text.strip()


def _axis(site: Site, text: str) -> Axis:
    """The axis of a setting; the usual one where the text is empty."""
    if not text:
        axis = Axis(site.name, site.value, **usual_values(site))
    elif ".." in text:
        axis = _range(site, text)
    else:
        choices = [converted(site.name, site.annotation, part) for part in text.split(",")]
        axis = Axis(site.name, site.value, choices=tuple(choices))
        _check_choices(site, axis)
    if not axis.holds(site.value):
        whole = f"write {site.name}={text},{in_words(site.value).strip(chr(39))}"
        if site.value is None:
            whole = "give it a value in the recipe"
        elif not axis.choices:
            ends = min(axis.low, site.value), max(axis.high, site.value)
            whole = f"write {site.name}={ends[0]:g}..{ends[1]:g}{':log' if axis.log else ''}"
        raise ConfigurationError(
            f"search {axis}: the recipe has {in_words(site.value)}, which is not in it, and trial "
            f"0 is the recipe; {whole}"
        )
    return axis


def _range(site: Site, text: str) -> Axis:
    ends, _, scale = text.partition(":")
    word = f"search {site.name}={text}"
    if not site.numeric:
        raise ConfigurationError(f"{word}: it takes no numbers; {_example(site)}")
    if scale not in ("", "log", "linear"):
        raise ConfigurationError(f"{word}: the scale is '{scale}': it must be log or linear")
    kind = int if site.whole else float
    low, high = (converted(f"search {site.name}", kind, end.strip()) for end in ends.split("..", 1))
    for end in (low, high):
        _check_number(site, word, end)
    if not low < high:
        raise ConfigurationError(f"{word}: {low} is not below {high}: write LOW..HIGH")
    if scale == "log" and low <= 0:
        raise ConfigurationError(
            f"{word}: a logarithmic scale has no {low}: begin above 0, or leave :log out"
        )
    return Axis(site.name, site.value, low, high, site.whole, scale == "log")


def _check_number(site: Site, word: str, value: float) -> None:
    if not site.limits.has(value) or value in (float("inf"), -float("inf")):
        limits = f" and {site.limits.words}" if site.limits.words else ""
        raise ConfigurationError(f"{word}: {value} does not fit; it must be finite{limits}")


def _check_choices(site: Site, axis: Axis) -> None:
    plain = (bool, int, float, str, type(None))
    for choice in axis.choices:
        if not isinstance(choice, plain):
            raise ConfigurationError(
                f"search {site.name}: lists and groups cannot be searched; {_example(site)}"
            )
        if isinstance(choice, int | float) and not isinstance(choice, bool):
            _check_number(site, f"search {axis}", choice)
        if site.is_component and choice not in site.choices:
            converted(f"search {site.name}", _literal(site.choices), choice)
    if len(set(map(repr, axis.choices))) < max(2, len(axis.choices)):
        raise ConfigurationError(f"search {axis}: name two or more different choices")


def _literal(choices: tuple[Any, ...]) -> Any:
    from typing import Literal

    return Literal[choices]


def _example(site: Site) -> str:
    some = ",".join(in_words(c).strip(chr(39)) for c in site.choices[:3]) or "LOW..HIGH"
    return f"write {site.name}={some}"


def _with_validation(base: Tree, axes: Sequence[Axis]) -> Tree:
    """The settings with validation tasks that stay the same if way or shot is searched."""
    for name in ("way", "shot"):
        own = value_at(base, f"episodes.validation_{name}")
        if own or not any(axis.name == f"episodes.{name}" for axis in axes):
            continue
        value = value_at(base, f"episodes.{name}")
        base, _ = merged(base, nested(f"episodes.validation_{name}", value))
    return base
