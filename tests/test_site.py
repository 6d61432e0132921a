"""The site without building it: pages, API entries, links, and the tests of Python blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import ROOT, TESTED, blocks

import fewshot_blo
from fewshot_blo import tasks

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")])
MARKDOWN = [path for path in PAGES if path.suffix == ".md"]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *MARKDOWN,
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "checkpoints").glob("*.md")),
]
_ENTRY = re.compile(r"^\.\. auto\w+:: (\S+)$", re.MULTILINE)
_TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FENCED = re.compile(r"^(```+|:::+).*?^\1$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^(?:#+ (.*)|\(([\w-]+)\)=)$", re.MULTILINE)


def identifier(path: Path) -> str:
    return str(path.relative_to(ROOT))


def entries() -> set[str]:
    """What the pages of the API describe."""
    pages = (DOCS / "reference" / "api").glob("*.md")
    return {name for page in pages for name in _ENTRY.findall(page.read_text(encoding="utf-8"))}


def test_every_public_name_is_on_a_page_of_the_api() -> None:
    public = {f"fewshot_blo.{name}" for name in fewshot_blo._HOME if name != "DataError"}
    public |= {f"fewshot_blo.tasks.{name}" for name in tasks.__all__}
    assert sorted(public - entries()) == []


def listed(page: Path) -> Iterator[Path]:
    """The pages in the tables of contents of a page."""
    for text in _TOCTREE.findall(page.read_text(encoding="utf-8")):
        for line in text.splitlines():
            if not line or line.startswith((":", "#")):
                continue
            for suffix in (".md", ".ipynb"):
                yield from page.parent.glob(f"{line}{suffix}")


def test_every_page_is_in_a_table_of_contents() -> None:
    found = {page for markdown in MARKDOWN for page in listed(markdown)}
    assert [identifier(page) for page in PAGES if page not in found] == ["docs/index.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=identifier)
def test_every_python_block_is_run_by_a_test(document: Path) -> None:
    name = identifier(document)
    test, number = TESTED.get(name, ("", 0))
    assert len(blocks(name)) == number, f"run the blocks of {name} in a test, named in TESTED"
    if number:
        assert Path(name).stem in (ROOT / test).read_text(encoding="utf-8")


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub and the site form them."""
    text = _FENCED.sub("", document.read_text(encoding="utf-8"))
    found: set[str] = set()
    for heading, label in _HEADING.findall(text):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(label or re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=identifier)
def test_links_within_the_repository_lead_somewhere(document: Path) -> None:
    text = re.sub(r"`[^`]*`", "", _FENCED.sub("", document.read_text(encoding="utf-8")))
    dead = []
    for link in _LINK.findall(text):
        if re.match(r"https?:|mailto:|#$", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (
            anchor and target.suffix == ".md" and anchor not in anchors(target)
        ):
            dead.append(link)
    assert dead == []
