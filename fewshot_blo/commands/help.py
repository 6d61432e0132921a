"""Help for a command, and for the components that it takes, from their docstrings."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from docstring_parser import parse

from fewshot_blo.commands.options import CONFIG, Options
from fewshot_blo.experiments.components import Component, Tree, plain
from fewshot_blo.experiments.plan import Plan

_WIDTH, _LEFT = 100, 34


def command_help(command: str, description: str, options: Options) -> str:
    """All that a command takes: its options, and a line for each component."""
    words = f" {options.positional.upper()} ..." if options.positional else ""
    lines = [
        f"usage: fewshot-blo {command}{words} [--OPTION VALUE ...]",
        "",
        *_wrapped(description),
    ]
    plans = options.plans({})
    for plan in reversed(plans):
        lines += _group("options" if plan is plans[-1] else "settings of the run", plan, options)
    if options.files:
        lines.insert(-1, _line(f"--{CONFIG} FILE", "settings in YAML; options are laid over them"))
    return "\n".join(lines)


def component_help(options: Options, place: str, name: str) -> str:
    """The settings at a place: of the component of a name, or of the one that is usual."""
    tree: Tree = {}
    level = tree
    *above, last = place.split(".")
    for part in above:
        level = level.setdefault(part, {})
    if name:
        level[last] = name
    for plan in (p for whole in options.plans(tree) for p in whole.plans()):
        if plan.place == place and plan.kind is not None:
            lines = [f"--{place} {plan.slot.name(plan.kind)}" if plan.slot else place, ""]
            lines += _wrapped(inspect.getdoc(plan.kind) or "", whole=True)
            lines += ["", "settings", *_settings(plan, deep=True)]
            if plan.slot:
                lines += ["", f"other {plan.slot.noun}s: {', '.join(plan.slot.names)}"]
            return "\n".join(lines)
    return f"there are no settings at --{place}"


def _group(title: str, plan: Plan, options: Options) -> Iterator[str]:
    del options
    yield ""
    yield title
    yield from _settings(plan)
    texts = descriptions(plan.kind)
    for name, part in plan.parts.items():
        if part.slot:
            known = [
                f"{n} (default)" if part.kind and n == part.slot.name(part.kind) else n
                for n in part.slot.names
            ]
            text = (
                f"{texts.get(name, part.slot.noun)}: {', '.join(known)}; more by --{name}.help NAME"
            )
            yield _line(f"--{name} NAME", text)
    for name, part in plan.parts.items():
        if not part.slot:
            yield ""
            yield f"{name}: {texts.get(name, '')}"
            yield from _settings(part, deep=True)


def _settings(plan: Plan, *, deep: bool = False) -> Iterator[str]:
    texts = descriptions(plan.kind)
    for name, setting in plan.settings.items():
        default = setting.default
        shown = "" if default is inspect.Parameter.empty else f" (default: {_shown(default)})"
        text = texts.get(name, "") + shown
        yield _line(f"--{plan.at(name)} {type_in_words(setting.annotation)}".rstrip(), text)
    if not deep:
        return
    for name, part in plan.parts.items():
        if part.slot:
            kind = part.slot.name(part.kind) if part.kind else "none"
            names = ", ".join(part.slot.names)
            yield _line(f"--{part.place} NAME", f"{texts.get(name, '')}: {names} (default: {kind})")
        yield from _settings(part, deep=True)


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
        return "|".join(map(str, get_args(annotation)))
    if annotation is bool:
        return ""
    names = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH", type(None): "null"}
    if annotation in names:
        return names[annotation]
    inner = [a for a in get_args(annotation) if a is not Ellipsis]
    if get_origin(annotation) in (tuple,):
        return "[" + ",".join(type_in_words(a) for a in inner) + "]"
    if get_origin(annotation) is dict:
        return "{NAME: NUMBER}"
    if _listed(annotation):
        return f"{type_in_words(inner[0])} ..."
    return "|".join(dict.fromkeys(type_in_words(a) for a in inner)) or "VALUE"


def _listed(annotation: Any) -> bool:
    return getattr(get_origin(annotation), "__name__", "") in ("list", "Sequence")


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, Component):
        return str(plain({}, default))
    return str(default) if str(default) != "" else "none"


def _line(option: str, text: str) -> str:
    body = textwrap.wrap(text, _WIDTH - _LEFT) or [""]
    head = f"  {option}"
    if len(head) >= _LEFT - 1:
        lines = [head, *(" " * _LEFT + line for line in body)]
    else:
        lines = [f"{head:{_LEFT}}{body[0]}", *(" " * _LEFT + line for line in body[1:])]
    return "\n".join(line.rstrip() for line in lines)


def _wrapped(text: str, *, whole: bool = False) -> Sequence[str]:
    """Paragraphs of a text; of a docstring those before its sections."""
    kept = []
    for paragraph in text.split("\n\n"):
        if whole and paragraph.strip().startswith(("Attributes:", "Args:", "Raises:")):
            continue
        kept += [*textwrap.wrap(" ".join(paragraph.split()).replace("``", ""), _WIDTH), ""]
    return kept[:-1]
