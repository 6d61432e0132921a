"""Help for a command, and for the components that it takes, from their docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from docstring_parser import parse

from fewshot_blo.commands.options import CONFIG, Options
from fewshot_blo.commands.words import is_list
from fewshot_blo.errors import ConfigurationError, nearest
from fewshot_blo.experiments.components import Tree
from fewshot_blo.experiments.plan import Plan, Setting
from fewshot_blo.records.checked import ranges

_WIDTH, _LEFT = 100, 34


def command_help(command: str, description: str, options: Options) -> str:
    """All that a command takes: its options, and a line for each component."""
    plans = options.plans({})
    # Those of every command, and of --config, come last.
    own, run = (plans[1:], plans[:1]) if options.files else (plans, [])
    lines = [_usage(command, options), "", *_wrapped(description), "", "options"]
    lines += [line for plan in own for line in _positional(plan, options.positional)]
    for plan in own:
        lines += _lines(plan, options.positional)
    if options.files:
        text = "recipe or settings of a run (YAML); options are laid over them"
        lines.append(_line(f"--{CONFIG} FILE", text))
    for plan in own:
        lines += _groups(plan)
    for plan in run:
        lines += ["", "settings of the run", *_lines(plan), *_groups(plan)]
    names = [name for plan in plans for name, part in plan.parts.items()]
    if names:
        example = "strategy" if "strategy" in names else names[0]
        lines += ["", f"--{example}.help NAME has the settings of a component."]
        if groups := [name for name in ("train", "episodes") if name in names]:
            lines[-1] += f" --{groups[0]}.help has all that is to say of a group."
    return "\n".join(lines)


def component_help(options: Options, place: str, tree: Tree) -> str:
    """The settings at a place: of the component that is chosen there, of a group, or one setting.

    Raises:
        ConfigurationError: if there is no such place.
    """
    plans = [plan for whole in options.plans(tree) for plan in whole.plans()]
    for plan in plans:
        if plan.place == place and place:
            return "\n".join(_component(plan))
        for name, setting in plan.settings.items():
            if plan.at(name) == place:
                return _setting(plan, name, setting, descriptions(plan.kind), whole=True)
    known = [name for plan in plans for name in plan.names()]
    raise ConfigurationError(f"there are no settings at --{place}{nearest(place, known)}")


def _usage(command: str, options: Options) -> str:
    if not options.positional:
        return f"usage: fewshot-blo {command} [--OPTION VALUE ...]"
    annotations = [
        plan.settings[options.positional].annotation
        for plan in options.plans({})
        if options.positional in plan.settings
    ]
    more = " ..." if any(map(is_list, annotations)) else ""
    return f"usage: fewshot-blo {command} {options.positional.upper()}{more} [--OPTION VALUE ...]"


def _component(plan: Plan) -> Iterator[str]:
    if plan.kind is not None:
        yield f"--{plan.place} {plan.slot.name(plan.kind)}" if plan.slot else f"--{plan.place}"
        yield ""
        yield from _wrapped(inspect.getdoc(plan.kind) or "")
        yield ""
        settings = list(_deep(plan, whole=True))
        yield from ["settings", *settings] if settings else ["It has no settings."]
    if plan.slot:
        yield ""
        yield f"what --{plan.place} may be"
        for kind in plan.slot.choices:
            yield _line(plan.slot.name(kind), _first(_summary(kind)))


def _summary(kind: Callable[..., Any]) -> str:
    return parse(inspect.getdoc(kind) or "").short_description or ""


def _positional(plan: Plan, name: str) -> Iterator[str]:
    """The line of the words that belong to no option."""
    if name in plan.settings:
        yield _setting(plan, name, plan.settings[name], descriptions(plan.kind), bare=True)


def _lines(plan: Plan, positional: str = "") -> Iterator[str]:
    """Settings of its own, and a line for the place of each component."""
    texts = descriptions(plan.kind)
    for name, setting in plan.settings.items():
        if name != positional:
            yield _setting(plan, name, setting, texts)
    for name, part in plan.parts.items():
        if part.slot:
            yield _choice(part, texts.get(name, part.slot.noun))


def _choice(part: Plan, text: str, *, whole: bool = False) -> str:
    """The line of a place for a component."""
    if part.slot is None:
        return ""
    usual = part.slot.name(part.kind) if part.kind else "none"
    text = text if whole else _first(text)
    return _line(f"--{part.place} NAME", f"{text}: {', '.join(part.slot.names)} [{usual}]")


def _groups(plan: Plan) -> Iterator[str]:
    texts = descriptions(plan.kind)
    for name, part in plan.parts.items():
        if not part.slot:
            yield ""
            yield f"{name}: {texts.get(name, '')}"
            yield from _deep(part)


def _deep(plan: Plan, *, whole: bool = False) -> Iterator[str]:
    """All settings, those of the components in it too."""
    texts = descriptions(plan.kind)
    for name, setting in plan.settings.items():
        yield _setting(plan, name, setting, texts, whole=whole)
    for name, part in plan.parts.items():
        if part.slot:
            yield _choice(part, texts.get(name, part.slot.noun), whole=whole)
        yield from _deep(part, whole=whole)


def _setting(
    plan: Plan,
    name: str,
    setting: Setting,
    texts: Mapping[str, str],
    *,
    whole: bool = False,
    bare: bool = False,
) -> str:
    text = texts.get(name, "")
    shown = _shown(setting.default, words=is_list(setting.annotation))
    text = text if whole else _first(text, shown)
    # What a text says, as "in [0, 1)", is not said twice.
    limits = ranges(plan.kind).get(name, "") if whole and plan.kind else ""
    text += f" ({limits})" if limits and limits not in text else ""
    text += f" {shown if shown.startswith('[') else f'[{shown}]'}" if shown else ""
    option = name.upper() if bare else f"--{plan.at(name)} {type_in_words(setting.annotation)}"
    return _line(option.rstrip(), text)


def _first(text: str, default: str = "") -> str:
    """The first clause, for a list where each has a line, and what a default stands for."""
    first, *more = re.split(r"[;:] |\. (?=[A-Z0-9])", text)
    meaning = [clause for clause in more if default and clause.startswith(f"{default} for ")]
    return "; ".join([first, *meaning[:1]]).removesuffix(".")


def descriptions(kind: Callable[..., Any] | None) -> dict[str, str]:
    """What the docstring of a class says of each setting, on one line."""
    parsed = parse(inspect.getdoc(kind) or "") if kind else None
    found = {}
    for parameter in parsed.params if parsed else ():
        for name in parameter.arg_name.split(","):
            text = " ".join((parameter.description or "").split())
            found[name.strip()] = text.replace("``", "").removesuffix(".")
    return found


def type_in_words(annotation: Any) -> str:
    """The kind of value that an option takes."""
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation) if choice != "")
    if annotation is bool:
        return ""
    names = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH", type(None): ""}
    if annotation in names:
        return names[annotation]
    inner = [a for a in get_args(annotation) if a is not Ellipsis]
    if get_origin(annotation) in (tuple,):
        return "[" + ",".join(type_in_words(a) for a in inner) + "]"
    if get_origin(annotation) is dict:
        return "{NAME: " + type_in_words(inner[1]) + "}"
    if is_list(annotation):
        return f"{type_in_words(inner[0])} ..."
    return "|".join(dict.fromkeys(word for a in inner if (word := type_in_words(a)))) or "VALUE"


def _shown(default: Any, *, words: bool) -> str:
    """A default as it is written, a list as words or in brackets; nothing for one that is empty."""
    if default is inspect.Parameter.empty or default is None or default in ("", (), {}):
        return ""
    if isinstance(default, bool):
        return "" if not default else "true"
    if isinstance(default, list | tuple):
        return " ".join(map(str, default)) if words else f"[{','.join(map(_number, default))}]"
    return _number(default)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _line(option: str, text: str) -> str:
    head = f"  {option}"
    if len(head) >= _LEFT - 1 and len(head) + 2 + len(text) <= _WIDTH:
        return f"{head}  {text}"
    body = [" " * _LEFT + line for line in textwrap.wrap(text, _WIDTH - _LEFT)]
    if len(head) < _LEFT - 1 and body:
        body[0] = f"{head:{_LEFT}}{body[0].strip()}"
        return "\n".join(body)
    return "\n".join([head, *body])


def _wrapped(text: str) -> Sequence[str]:
    """Paragraphs of a text, without the sections of a docstring."""
    kept = []
    for paragraph in text.split("\n\n"):
        if not paragraph.strip().startswith(("Attributes:", "Args:", "Raises:", "Returns:")):
            kept += [*textwrap.wrap(" ".join(paragraph.split()).replace("``", ""), _WIDTH), ""]
    return kept[:-1]
