"""Makes docstrings and signatures of this project read well: what Sphinx takes for something else.

* A range of ``records.ranges`` leaves the signature, ``steps: Annotated[int, AtLeast(0)]``, and
  stands in words in the description: "steps: number of steps (at least 0)".
* "low, high: ends" documents two names at once.
* A property's first line may have a colon, which Google's style reads as the end of a type.
* "Attributes" are called so, and not "Variables".
* Names of described arguments are no links: Sphinx would look for any attribute of this name.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any, get_origin

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

from fewshot_blo.records.checked import ranges

# Characters of the private use area: they stand for text that Sphinx must not interpret.
_COLON, _SPACE = "\ue000", "\ue001"
_FIELD = re.compile(r"^(\s*):(ivar|param) ([*\w]+(?:, [*\w]+)*): ?(.*)$")
_NAME = re.compile(r"(?<![\w.'\"])[A-Z]\w*(?![\w.('\"])")
_KIND = "AtLeast|Above|AtMost|Below|OrInfinite|NotEmpty"
_MARK = rf", ~?(?:fewshot_blo\.records\.ranges\.)?(?:{_KIND})\([^()]*\)"
_ANNOTATED = re.compile(rf"(?:~?typing\.)?Annotated\[((?:[^\[\]]|\[[^\[\]]*\])+?)(?:{_MARK})+\]")
# What cannot be read as Python, or is called otherwise on other systems.
_DEFAULTS = {
    r"<factory>": "...",
    r"<class '(?:\w+\.)*(\w+)'>": r"\1",
    r"\bPosixPath\(": "Path(",
}


def resolved(annotation: str | None, names: Mapping[str, Any]) -> str | None:
    """A signature with what aliases stand for, and with the types behind marked ones."""
    if annotation is None:
        return None
    for shown, meant in _DEFAULTS.items():
        annotation = re.sub(shown, meant, annotation)

    def meaning(found: re.Match[str]) -> str:
        alias = names.get(found[0])
        return found[0] if get_origin(alias) is None else stringify_annotation(alias, "smart")

    annotation, count = _NAME.sub(meaning, annotation), 1
    while count:  # A marked type may be within another.
        annotation, count = _ANNOTATED.subn(r"\1", annotation)
    return annotation


def _signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str | None, str | None]:
    kinds = reversed(obj.__mro__) if inspect.isclass(obj) else (obj,)
    modules = [sys.modules.get(getattr(kind, "__module__", None) or "") for kind in kinds]
    names = {name: value for module in modules if module for name, value in vars(module).items()}
    return resolved(signature, names), resolved(returns, names)


def _before_napoleon(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    if what in ("property", "attribute", "data") and lines:
        lines[0] = lines[0].replace(":", _COLON)


def _after_napoleon(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    limits = _limits(obj)
    lines[:] = [_FIELD.sub(lambda found: _field(found, limits), line) for line in lines]
    if lines:
        lines[0] = lines[0].replace(_COLON, ":")


def _limits(described: Any) -> Mapping[str, str]:
    if not inspect.isclass(described) and not inspect.isfunction(described):
        return {}
    try:
        return ranges(described)
    except (NameError, TypeError, AttributeError):  # Imported for type checkers only.
        return {}


def _field(found: re.Match[str], limits: Mapping[str, str]) -> str:
    indent, role, names, text = found.groups()
    words = {limits[name] for name in names.split(", ") if name in limits}
    if len(words) == 1 and (range_ := words.pop()) not in text:
        text = f"({range_}) {text}"
    return f"{indent}:{role} {names.replace(' ', _SPACE)}: {text}"


def _names(app: Sphinx, tree: nodes.document) -> None:
    for link in list(tree.findall(addnodes.pending_xref)):
        if link.get("reftype") == "obj" and _is_described(link):
            link.replace_self(link.children)
    for name in tree.findall(nodes.field_name):
        if name.astext() == "Variables":  # So napoleon calls the section "Attributes".
            name.children = [nodes.Text("Attributes")]
    for text in list(tree.findall(nodes.Text)):
        if _SPACE in text:
            text.parent.replace(text, nodes.Text(text.replace(_SPACE, " ")))


def _is_described(link: nodes.Node) -> bool:
    """Whether it is the name of a described argument or attribute, in front of its description."""
    if link.parent.index(link) != 0:
        return False
    parent = link.parent
    while parent is not None and not isinstance(parent, nodes.field_body):
        parent = parent.parent
    return parent is not None


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the changes with Sphinx; napoleon has the priority 500."""
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", _after_napoleon, priority=600)
    app.connect("doctree-read", _names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
