"""Links a public name that stands in ``code`` to its entry in the API reference."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

import fewshot_blo
from fewshot_blo import tasks

_TARGETS = {name: f"fewshot_blo.tasks.{name}" for name in tasks.__all__} | {
    name: f"fewshot_blo.{name}" for name in fewshot_blo._HOME if name != "fit"
}


def link(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Puts every literal that is a public name, outside of headings and links, into a link."""
    objects = app.env.domains.python_domain.objects
    for literal in list(tree.findall(nodes.literal)):
        target = _TARGETS.get(literal.astext().removesuffix("()"))
        if target not in objects or _is_within(literal, nodes.title, nodes.reference):
            continue
        entry = objects[target]
        link = make_refnode(app.builder, page, entry.docname, entry.node_id, literal.deepcopy())
        literal.replace_self(link)


def _is_within(node: nodes.Node, *kinds: type[nodes.Node]) -> bool:
    parent = node.parent
    while parent is not None and not isinstance(parent, kinds):
        parent = parent.parent
    return parent is not None


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the links with Sphinx."""
    app.connect("doctree-resolved", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
